"""Packages that only an extra installs, and the command that installs them."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["missing_modules", "needs", "require"]


def needs(user: str, *packages: str, extra: str) -> str:
    """Return the text of an error for missing packages.

    Examples
    --------
    >>> needs("several objects", "scipy", extra="rewards")
    'several objects needs scipy; run: pip install "g2rpo[rewards]"'
    """
    return f'{user} needs {", ".join(packages)}; run: pip install "g2rpo[{extra}]"'


def missing_modules(*modules: str) -> list[str]:
    """Return the top-level modules that are not installed; nothing is imported.

    Examples
    --------
    >>> missing_modules("math", "g2rpo_abacus")
    ['g2rpo_abacus']
    """
    return [name for name in modules if find_spec(name) is None]


def require(user: str, *modules: str, extra: str, error: type[Exception] = ImportError) -> None:
    """Raise an error with the command to run if any of the modules is not installed.

    `user` is the package, option or file that needs them, `extra` what installs them.

    Examples
    --------
    >>> require("counting", "math", extra="cli")
    >>> require("counting", "g2rpo_abacus", extra="cli")
    Traceback (most recent call last):
        ...
    ImportError: counting needs g2rpo_abacus; run: pip install "g2rpo[cli]"
    """
    if missing := missing_modules(*modules):
        raise error(needs(user, *missing, extra=extra))
