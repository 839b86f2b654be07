"""Damaged and absurd inputs of every kind; only the library's own errors may come back."""
