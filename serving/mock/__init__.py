"""A fake vLLM server: OpenAI's API and vLLM's metrics, timed by the simulated engine."""
