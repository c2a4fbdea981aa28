"""Responses: sampled with shared prompts or by another engine; prompts without signal give way."""
