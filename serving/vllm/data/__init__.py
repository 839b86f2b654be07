"""What vLLM's scheduler needs beside torch, pinned."""
