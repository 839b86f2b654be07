"""Conformance: the reference engine against vLLM's own scheduler, step by step."""
