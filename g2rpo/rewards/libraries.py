"""Optional libraries of some rewards, imported at the first answer that needs them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from g2rpo._extras import needs


class MissingLibraryError(ImportError):
    """A reward needs a library that is not installed."""


def library(module: str, purpose: str) -> Any:
    """Return a module, or raise an error with the command that installs it.

    Examples
    --------
    >>> library("math", "counting").floor(2.5)
    2
    >>> library("g2rpo_abacus", "counting")
    Traceback (most recent call last):
        ...
    g2rpo.rewards.libraries.MissingLibraryError: counting needs g2rpo_abacus;
    run: pip install "g2rpo[rewards]"
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        name = module.partition(".")[0]
        text = needs(purpose, name, extra="rewards")
        raise MissingLibraryError(text, name=error.name) from error
