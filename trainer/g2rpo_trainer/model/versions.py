"""Releases of transformers and peft that the trainer works with.

Packaging tools keep to the range in ``pyproject.toml`` unless they are overruled, and that range
cannot say which peft a release of transformers wants.
"""

from __future__ import annotations

from packaging.version import Version

from g2rpo._extras import needs
from g2rpo_trainer.errors import RunError

# As in pyproject.toml. Releases before it miscount the images and videos of SmolVLM.
_TRANSFORMERS = "5.23"
# The first release of transformers that wants a later peft than pyproject.toml does.
_NEEDS_NEWER_PEFT = "5.24"


def require_transformers() -> None:
    """Raise `RunError` if the installed transformers is too old."""
    from transformers import __version__

    if Version(__version__) < Version(_TRANSFORMERS):
        raise RunError(
            f"transformers is {__version__}, but must be {_TRANSFORMERS} or later: "
            f'pip install "transformers>={_TRANSFORMERS}"'
        )


def require_peft() -> None:
    """Raise `RunError` if the installed peft cannot be used."""
    if (fault := peft_fault()) is not None:
        raise RunError(fault)


def peft_fault() -> str | None:
    """Say why the installed peft cannot be used, if so."""
    try:
        import peft
    except ImportError:
        return needs("model.lora", "peft", extra="torch")
    from transformers import __version__
    from transformers.integrations.peft import MIN_PEFT_VERSION as least

    if Version(peft.__version__) >= Version(least):
        return None
    return (
        f"model.lora needs peft >= {least} with transformers {__version__}, but peft is "
        f"{peft.__version__}; install that, or a release of transformers before "
        f'{_NEEDS_NEWER_PEFT}: pip install "transformers<{_NEEDS_NEWER_PEFT}"'
    )
