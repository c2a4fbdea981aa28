"""Records to tensors: ``chat`` (the text), ``encoding`` (one prompt), ``batching`` (several)."""
