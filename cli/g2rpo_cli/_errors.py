"""Errors in one line: what was wrong and what to do; tracebacks only for who asks for them."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

_USAGE, _FAILURE = 2, 1

# So much of an error of other libraries fits a screen [characters].
_LONGEST = 1500


@contextmanager
def reported(*, is_before_start: bool = False) -> Iterator[None]:
    """Print an error in red on stderr and exit: 2 for what the user can change, else 1.

    Of several processes that train together one tells what all find wrong alike, as all do with
    `RunError` while they read the configuration, before the start.

    With ``g2rpo --debug``, or ``G2RPO_DEBUG=1`` in the environment, the traceback comes first.
    """
    try:
        yield
    except Exception as error:
        import typer

        if isinstance(error, typer.Exit | typer.Abort):  # by which Typer ends commands
            raise
        is_debugging = os.environ.get("G2RPO_DEBUG") == "1"
        if is_debugging:
            traceback.print_exc()
        from g2rpo._shown import error_text
        from g2rpo_trainer.errors import RunError, SharedError
        from g2rpo_trainer.launch import Launch

        # A launcher ends all processes when one fails, so those that say nothing do not.
        launch = Launch.read()
        if isinstance(error, SharedError) and not launch.is_main:
            raise SystemExit(0) from None
        if isinstance(error, RunError) and is_before_start and not launch.reports_errors:
            raise SystemExit(0) from None
        # A run notes on an error how it goes on.
        notes = getattr(error, "__notes__", [])
        if isinstance(error, RunError):
            _print_error("\n".join([str(error), *notes]))
            raise SystemExit(_USAGE) from None
        text = error_text(error, _LONGEST)
        hint = "" if is_debugging else " (g2rpo --debug shows the traceback)"
        _print_error("\n".join([f"{type(error).__name__}: {text}{hint}", *notes]))
        raise SystemExit(_FAILURE) from None


def need(command: str, *modules: str, extra: str) -> None:
    """Exit with the command to install when one of `modules` is missing."""
    from g2rpo._extras import missing_modules, needs

    if missing := missing_modules(*modules):
        _print_error(needs(command, *missing, extra=extra))
        raise SystemExit(_USAGE)


def load_trainer(command: str) -> Any:
    """Import the reference trainer, or exit with the command to install what it lacks."""
    need(command, "torch", "transformers", "safetensors", extra="torch")
    return import_module("g2rpo_trainer")


def _print_error(text: str) -> None:
    from g2rpo._shown import visible

    # Not Rich: it would break the line, and a message may hold square brackets.
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    red, plain = ("\x1b[31m", "\x1b[0m") if coloured else ("", "")
    # It may quote a response.
    print(f"{red}error:{plain} {visible(text)}", file=sys.stderr)
