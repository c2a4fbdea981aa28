"""The embedded policy of the JAX trainer: a small decoder for the built-in text tasks.

====================  ===========================================================
``weights/``          sizes, weights and vocabulary, 1 MB in half precision
``decoder.py``        the architecture
``tokenizer.py``      words and characters
``vocabulary.py``     which words
``files.py``          how a policy lies in a folder
``cold_start.py``     how the weights were made
====================  ===========================================================
"""

from pathlib import Path


def policy_path() -> Path:
    """Return the folder with the embedded policy's weights and vocabulary."""
    return Path(__file__).parent / "weights"
