"""Keys of a run's description that its engine does not honour are refused by name."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from pydantic import BaseModel

from g2rpo.run.description import RunDescription, load_description
from g2rpo.run.errors import RunError


def refuse_unsupported(description: RunDescription, supported: Collection[str]) -> None:
    """Raise if a description sets something that its engine would have to ignore.

    A key that is not supported must have the engine's default; so a new key of the description is
    refused until the engine honours it.

    Parameters
    ----------
    description : RunDescription
        Of a run with ``description.engine``.
    supported : collection of str
        Dotted keys, or sections as a whole, that the engine follows.

    Raises
    ------
    RunError
        One line for each such key, with what to do.

    Examples
    --------
    >>> supported = ("engine", "model.name", "optimization")
    >>> settings = ["engine=jax", "optimization.steps=9"]
    >>> refuse_unsupported(load_description(settings=settings), supported)
    >>> settings.append("model.dtype=bfloat16")
    >>> refuse_unsupported(load_description(settings=settings), supported)
    Traceback (most recent call last):
        ...
    g2rpo.run.errors.RunError: model.dtype is 'bfloat16', which the engine jax does not support;
    leave it at 'float32', or train with the engine reference
    """
    engine = description.engine
    defaults = dict(_flat(load_description(overrides={"engine": engine})))
    lines = [
        f"{key} is {value!r}, which the engine {engine} does not support; leave it at "
        f"{defaults[key]!r}, or train with the engine reference"
        for key, value in _flat(description)
        if value != defaults[key] and not is_among(key, supported)
    ]
    if lines:
        raise RunError("\n".join(lines))


def is_among(key: str, supported: Collection[str]) -> bool:
    """Tell whether a key is named, or a section that it is in.

    Examples
    --------
    >>> is_among("rollout.stop", ["rollout"])
    True
    """
    return any(key == known or key.startswith(f"{known}.") for known in supported)


def _flat(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
