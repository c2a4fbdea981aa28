"""Keeps the progress bars of other libraries out of our own display."""

__all__ = ["hide_foreign_bars"]


def hide_foreign_bars() -> None:
    """Hide the bars that Transformers shows for every file it loads or writes."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
