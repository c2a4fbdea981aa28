"""Estimators by name with options given as text, such as ``gaussian:task_stage=match``."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from g2rpo._suggest import did_you_mean, unknown_name
from g2rpo.advantages import ESTIMATORS, Estimator, takes_lengths
from g2rpo_trainer.config import parse_setting
from g2rpo_trainer.errors import RunError

#: Options about columns of the table, which have flags of their own.
_OF_COLUMNS = {
    "component_weights": "--weight",
    "decoupled": "--decoupled",
    "lengths": "--length",
}


def estimator_options(name: str) -> Mapping[str, inspect.Parameter] | None:
    """Return the keyword-only options of an estimator by name; None if it takes any."""
    parameters = inspect.signature(ESTIMATORS[name]).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}


def named_estimator(
    text: str,
    settings: Iterable[str] = (),
    *,
    component_weights: Sequence[float] | None = None,
    decoupled: bool = False,
) -> Estimator:
    """Return the estimator that a text names, with its options bound.

    Parameters
    ----------
    text : str
        A name in :data:`g2rpo.ESTIMATORS`, or ``NAME:KEY=VALUE,KEY=VALUE``.
    settings : iterable of str
        More options, ``"KEY=VALUE"`` each.
    component_weights : sequence of float, optional
        Weights of reward components.
    decoupled : bool, optional
        Ask an estimator that knows it to normalise each component by itself. Others ignore it.

    Returns
    -------
    callable
        ``estimator(rewards, groups, tasks, lengths=None)``; values that the estimator refuses raise
        `RunError`. Lengths go to an estimator that takes them, which needs them.

    Raises
    ------
    RunError
        If there is no such estimator or it has no such option, with a list of those there are.

    Examples
    --------
    >>> import numpy as np
    >>> estimator = named_estimator("grpo:scale=none")
    >>> estimator(np.asarray([0.0, 1.0]), np.asarray([0, 0]), np.asarray([0, 0]))
    array([-0.5,  0.5])
    """
    name, _, attached = text.partition(":")
    if name not in ESTIMATORS:
        raise RunError(unknown_name("estimator", name, ESTIMATORS))
    known = estimator_options(name)
    options: dict[str, Any] = {}
    for setting in [*filter(None, attached.split(",")), *settings]:
        if "=" not in setting:
            raise RunError(f"option {setting!r} must be KEY=VALUE, such as task_stage=match")
        key, value = parse_setting(setting)
        options[key] = _checked(name, known, key, value)
    if component_weights is not None:
        options["component_weights"] = list(component_weights)
    if decoupled and known is not None and "decoupled" in known:
        options["decoupled"] = True
    return partial(_call, name, options)


def refuse_decoupled(text: str) -> None:
    """Raise `RunError` if the estimator that a text names cannot be asked to be decoupled."""
    name = text.partition(":")[0]
    known = estimator_options(name)
    if known is not None and "decoupled" not in known:
        knowing = [other for other in ESTIMATORS if "decoupled" in (estimator_options(other) or ())]
        raise RunError(
            f"--decoupled: estimator {name!r} has no such option ({', '.join(knowing)} has; "
            "gdpo always takes components apart)"
        )


def _call(
    name: str,
    options: Mapping[str, Any],
    rewards: Any,
    groups: Any,
    tasks: Any,
    lengths: Any = None,
) -> Any:
    if takes_lengths(ESTIMATORS[name]):
        if lengths is None:
            raise RunError(
                f"estimator {name!r} needs the responses' lengths in tokens: a column 'length' of "
                "numbers, or another that --length names"
            )
        options = {**options, "lengths": lengths}
    try:
        return ESTIMATORS[name](rewards, groups, tasks, **options)
    except (TypeError, ValueError) as error:
        # Rewards and labels were checked when they were read, so it is an option that is wrong.
        if not options:
            raise
        wish = str(error).replace(", None", ", null")
        raise RunError(f"estimator {name!r}: {wish}") from None


def _checked(name: str, known: Mapping[str, inspect.Parameter] | None, key: str, value: Any) -> Any:
    if key in _OF_COLUMNS:
        raise RunError(f"option {key!r} has a flag of its own, {_OF_COLUMNS[key]}")
    if known is None:
        return value
    if key not in known:
        names = [option for option in known if option not in _OF_COLUMNS]
        there = f"it takes {', '.join(names)}" if names else "it takes none"
        raise RunError(
            f"estimator {name!r} has no option {key!r}{did_you_mean(key, names)} ({there})"
        )
    kind = str(known[key].annotation)
    nullable = known[key].default is None or "None" in kind
    if nullable and value in (None, "none"):
        return None
    if kind == "int" and (isinstance(value, bool) or not isinstance(value, int)):
        raise RunError(f"option {key!r} is {value!r}, but must be a whole number")
    return _as_number(key, value, nullable) if "float" in kind else value


def _as_number(key: str, value: Any, nullable: bool) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)  # of a text as well: YAML reads 1e-4 as one
    except (TypeError, ValueError):
        wish = "a number or null" if nullable else "a number"
        raise RunError(f"option {key!r} is {value!r}, but must be {wish}") from None
