"""The embedded policy: a vision-language model of a million parameters inside the package.

``policy_path()`` is a folder in Hugging Face format, which ``AutoProcessor`` and
``AutoModelForImageTextToText`` read. ``python -m g2rpo_trainer.cold_start`` makes it anew.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["policy_path"]


def policy_path() -> Path:
    """Return the folder of the embedded policy.

    Examples
    --------
    >>> (policy_path() / "model.safetensors").stat().st_size < 4_000_000
    True
    """
    return Path(__file__).parent / "weights"
