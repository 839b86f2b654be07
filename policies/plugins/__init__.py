"""Policies inside real engines: vLLM, SGLang, transformers, Ray Serve, LiteLLM."""
