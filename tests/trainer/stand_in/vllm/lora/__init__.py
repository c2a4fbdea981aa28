"""The part of vLLM that has adapters."""
