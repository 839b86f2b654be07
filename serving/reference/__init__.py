"""The reference engine: plain, readable Python, every feature, any callable."""
