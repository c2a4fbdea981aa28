"""Passes of the model over prompts and responses, each prompt once where that is exact."""
