"""Custom reward functions, as Python functions or by their import path."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from traceback import extract_tb
from typing import Any

from g2rpo._suggest import did_you_mean

from .registry import ACCURACY, RewardFunction, plain_name


def load_function(path: str) -> Callable[..., Any]:
    """Return the function that an import path ``module:function`` names.

    Parameters
    ----------
    path : str
        Such as ``my_rewards.colours:colour_match``. Importing runs the module's code, so a path
        must come from the user, never from data.

    Returns
    -------
    callable
        The object of that name.

    Raises
    ------
    ValueError
        If the path has no such form, or names nothing that can be called.

    Examples
    --------
    >>> load_function("g2rpo.rewards:box_iou").__name__
    'box_iou'
    >>> load_function("g2rpo.rewards:box_iuo")
    Traceback (most recent call last):
        ...
    ValueError: reward function 'g2rpo.rewards:box_iuo': module g2rpo.rewards has no 'box_iuo';
    did you mean 'box_iou'?
    """
    module_name, colon, name = path.partition(":")
    if not colon or not module_name or not name:
        raise ValueError(f"reward function is {path!r}; it must be 'module:function'")
    found: Any = _module(module_name, path)
    for part in name.split("."):
        if not hasattr(found, part):
            hint = did_you_mean(part, dir(found))
            where = f"module {module_name} has no {part!r}"
            raise ValueError(f"reward function {path!r}: {where}{hint}")
        found = getattr(found, part)
    if not callable(found):
        kind = type(found).__name__
        raise ValueError(f"reward function {path!r} is of type {kind}; it must be a function")
    return found  # type: ignore[no-any-return]


def with_own(
    functions: Mapping[str, RewardFunction | str] | None = None,
) -> dict[str, RewardFunction]:
    """Return :data:`g2rpo.rewards.ACCURACY` together with custom functions.

    Parameters
    ----------
    functions : mapping, optional
        Problem type -> function, or its import path. A built-in type of that name is replaced;
        letter case and spaces are ignored.

    Returns
    -------
    dict
        Problem type -> function.

    Raises
    ------
    ValueError
        If a path names no function.
    TypeError
        If a value is neither a function nor a path.

    Examples
    --------
    >>> with_own({"colour": "g2rpo.rewards:choice_match"})["colour"].__name__
    'choice_match'
    """
    own = {}
    builtin = {plain_name(name): name for name in ACCURACY}
    for name, function in (functions or {}).items():
        # A custom "ocr" replaces the built-in "OCR", also for records with that spelling.
        problem_type = builtin.get(plain_name(name), name)
        if isinstance(function, str):
            own[problem_type] = load_function(function)
        elif callable(function):
            own[problem_type] = function
        else:
            kind = type(function).__name__
            raise TypeError(
                f"reward function of {name!r} is of type {kind}; it must be a function "
                "or its import path 'module:function'"
            )
    return ACCURACY | own


def function_name(function: Callable[..., Any]) -> str:
    """Return the import path of a function, for messages.

    Examples
    --------
    >>> from g2rpo.rewards import box_iou
    >>> function_name(box_iou)
    'g2rpo.rewards.boxes:box_iou'
    """
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{getattr(function, '__module__', None) or '?'}:{name}"


def raised_at(error: BaseException, function: Callable[..., Any]) -> str:
    """Return the place at which a function raised an error, such as ``"colours.py, line 7"``.

    It is the last line of the function's own file in the traceback, where its author can change it;
    without such a line, the last one of all.

    Examples
    --------
    >>> import json
    >>> try:
    ...     json.loads("{")
    ... except ValueError as error:
    ...     print(raised_at(error, json.loads).partition(",")[0])
    __init__.py
    """
    frames = extract_tb(error.__traceback__)
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    own = [frame for frame in frames if frame.filename == file] or frames
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}" if own else "no known place"


def _module(name: str, path: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        # The module may exist and miss one of its own imports.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failed(path, name, error) from error
        parent, _, last = error.name.rpartition(".")
        places = getattr(sys.modules[parent], "__path__", ()) if parent else None
        hint = did_you_mean(last, {module.name for module in iter_modules(places)})
        raise ValueError(f"reward function {path!r}: no module {error.name!r}{hint}") from None
    except Exception as error:
        raise _failed(path, name, error) from error


def _failed(path: str, module: str, error: Exception) -> ValueError:
    kind = type(error).__name__
    return ValueError(f"reward function {path!r}: importing {module} raised {kind}: {error}")
