"""Finds the function that a command is to work on: a name, a module's, or a file's."""

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any


def load_target(target: str, settings: Sequence[str] = ()) -> Callable[..., Any]:
    """Return the advantage function called ``target``, with its options bound.

    It is ``module:function`` (the working folder is searched as well),
    ``path/to/file.py:function``, or a name of ``g2rpo.ESTIMATORS``; settings are ``KEY=VALUE``.
    Raises RunError if there is none, or its file does not run.
    """
    function = _find(target)
    if not settings:
        return function
    from g2rpo_trainer.config import parse_setting

    return partial(function, **dict(map(parse_setting, settings)))


def _find(target: str) -> Callable[..., Any]:
    from g2rpo import ESTIMATORS
    from g2rpo._suggest import did_you_mean, unknown_name
    from g2rpo_trainer.errors import RunError

    place, colon, path = target.rpartition(":")
    if not colon:
        if target not in ESTIMATORS:
            hint = "; a function of your own is module:function or file.py:function"
            raise RunError(unknown_name("estimator", target, ESTIMATORS) + hint)
        return ESTIMATORS[target]
    if not place or not path:
        raise RunError(f"TARGET must be module:function or file.py:function, got {target!r}")
    is_file = place.endswith(".py") or os.sep in place
    found: Any = _load_file(Path(place)) if is_file else _load_module(place)
    for name in path.split("."):
        if not hasattr(found, name):
            functions = [key for key in dir(found) if callable(getattr(found, key))]
            raise RunError(f"{place} has no {path!r}{did_you_mean(name, functions)}")
        found = getattr(found, name)
    if not callable(found):
        raise RunError(f"{target} is {type(found).__name__}, which cannot be called")
    return found  # type: ignore[no-any-return]


def _load_module(name: str) -> ModuleType:
    from g2rpo_trainer.errors import RunError

    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise RunError(
                f"there is no module {error.name!r} here or among the installed ones; "
                "a file is named with its ending, as in file.py:function"
            ) from None
        raise RunError(_why(name, error)) from None
    except Exception as error:
        raise RunError(_why(name, error)) from None


def _load_file(path: Path) -> ModuleType:
    from g2rpo_trainer.errors import RunError

    if not path.is_file():
        raise RunError(f"there is no file {path}")
    # Its neighbours are imported as they are when the file is run.
    sys.path.insert(0, str(path.parent.resolve()))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise RunError(f"{path} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    # Classes and pickles look their module up by name.
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[path.stem]
        raise RunError(_why(str(path), error)) from None
    return module


def _why(name: str, error: Exception) -> str:
    """Say in one line what went wrong, and on which line of which file."""
    text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}"
    else:
        last = traceback.extract_tb(error.__traceback__)[-1]
        inside = not last.filename.startswith("<")
        place = f"{last.filename}, line {last.lineno}" if inside else name
    return f"{name} cannot be imported: {type(error).__name__}: {text} ({place})"
