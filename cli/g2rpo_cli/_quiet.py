"""Keeps the progress bars and warnings of other libraries out of our own display."""

import warnings


def hide_foreign_bars() -> None:
    """Hide Transformers' bars for every file, and a warning that no user can act on."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # PEFT asks every model by an old name.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
