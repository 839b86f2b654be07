"""The fast twin of the reference engine: compiled, and the same to the bit."""
