"""From Python to the fast engine's machine code, and the machine code on disk."""
