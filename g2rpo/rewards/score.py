"""The reward of a response: its components and their weighted sum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from g2rpo._shown import shown

from .choice import choice_match, with_text
from .custom import function_name
from .ground_truth import TruthError, all_truths, bad_truth, truth_text
from .maths import maths_match, maths_text
from .registry import ACCURACY, STRUCTURE, TEXTS, RewardFunction, find_type
from .response import parse_response

ACCURACY_WEIGHT = 0.9
FORMAT_WEIGHT = 0.1
STRUCTURE_WEIGHT = 0.5


class BadRewardError(ValueError):
    """A reward function returned no finite number."""


class Weights(NamedTuple):
    """Weights of the reward components in their sum; by default those of the paper.

    Examples
    --------
    >>> Weights(structure=0)
    Weights(accuracy=0.9, format=0.1, structure=0)
    """

    accuracy: float = ACCURACY_WEIGHT
    format: float = FORMAT_WEIGHT
    structure: float = STRUCTURE_WEIGHT


PAPER_WEIGHTS = Weights()


class Components(NamedTuple):
    """Reward components of one response, from 0 to 1.

    Attributes
    ----------
    accuracy : float
        By the record's problem type; a custom function may leave the range. NaN is absent.
    format : float
        1 if the response is one thought and one answer, else 0.
    structure : float
        Share of the answer's structure that the problem type requires; 0 if the format is wrong.
    """

    accuracy: float
    format: float
    structure: float

    def total(self, weights: Weights = PAPER_WEIGHTS) -> float:
        """Return the weighted sum of the components.

        Parameters
        ----------
        weights : Weights
            By default ``.9 * accuracy + .1 * format + .5 * structure``, at most 1.5.

        Returns
        -------
        float
            In reward units; NaN if a component is.

        Examples
        --------
        >>> Components(1.0, 1.0, 1.0).total(), Components(0.5, 1.0, 1.0).total(Weights(1, 0, 0))
        (1.5, 0.5)
        """
        return sum(weight * part for weight, part in zip(weights, self, strict=True))


class Score(NamedTuple):
    """Accuracy and format of one response, each from 0 to 1.

    Attributes
    ----------
    reward : float
        ``0.9 * accuracy + 0.1 * format``.
    accuracy : float
        By the record's problem type.
    format : float
        1 if the response is one thought and one answer, else 0.
    """

    reward: float
    accuracy: float
    format: float


def score(
    record: Mapping[str, Any],
    response: str,
    functions: Mapping[str, RewardFunction] | None = None,
) -> Score:
    """Score one response by accuracy and format, without structure.

    Parameters
    ----------
    record : mapping
        With ``problem_type``, a key of :data:`ACCURACY`, and ``answer``.
    response : str
        Complete response of the policy.
    functions : mapping, optional
        As in :func:`components`.

    Returns
    -------
    Score
        The components and their sum.

    Raises
    ------
    ValueError
        If the problem type is unknown, or the record's answer does not fit it.

    See Also
    --------
    components : with the structure.
    g2rpo.rewards.RewardPool : many responses, in processes with a time limit.

    Examples
    --------
    >>> score({"problem_type": "maths", "answer": "7"}, "<answer>7</answer>")
    Score(reward=0.9, accuracy=1.0, format=0.0)
    """
    parts = components(record, response, functions)
    reward = ACCURACY_WEIGHT * parts.accuracy + FORMAT_WEIGHT * parts.format
    return Score(reward, parts.accuracy, parts.format)


def components(
    record: Mapping[str, Any],
    response: str,
    functions: Mapping[str, RewardFunction] | None = None,
) -> Components:
    """Return the reward components of one response.

    Parameters
    ----------
    record : mapping
        With ``problem_type`` and ``answer``, and ``options`` if an option may be named by its text.
    response : str
        Complete response of the policy.
    functions : mapping, optional
        All functions: problem type -> function of (answer, truth); :data:`ACCURACY` by default.

    Returns
    -------
    Components
        A response without answer tags has accuracy 0, and its function is not called.

    Raises
    ------
    ValueError
        If the problem type is unknown, the record's answer does not fit it, or the function returns
        anything but a finite number.

    Examples
    --------
    >>> record = {"problem_type": "temporal grounding", "answer": '{"time": [0, 4]}'}
    >>> components(record, '<think>early</think><answer>{"time": [0, 2]}</answer>')
    Components(accuracy=0.5, format=1.0, structure=1.0)
    >>> components(record, "<answer>from [0, 2]</answer>")
    Components(accuracy=0.5, format=0.0, structure=0.0)
    """
    functions = ACCURACY if functions is None else functions
    problem_type = find_type(record["problem_type"], functions)
    function = functions[problem_type]
    answer, well_formed = parse_response(response)
    if answer is None:
        return Components(0.0, 0.0, 0.0)
    try:
        truth = truth_of(record, function)
        accuracy = _finite(function(answer, truth), function)
    except TruthError as error:
        raise TruthError(f"answer of a {problem_type!r} record: {error}") from None
    structure = _structure(function, answer, truth) if well_formed else 0.0
    return Components(accuracy, float(well_formed), structure)


def check_record(
    record: Mapping[str, Any], functions: Mapping[str, RewardFunction] | None = None
) -> None:
    """Raise if a record cannot be scored, to find it before sampling.

    Parameters
    ----------
    record : mapping
        With ``problem_type`` and ``answer``.
    functions : mapping, optional
        As in :func:`components`. With a custom function only the problem type is checked.

    Raises
    ------
    ValueError
        If the problem type is unknown, or the record's answer does not fit it: it cannot be read,
        or scores less than 1 with itself as the truth.

    Examples
    --------
    >>> check_record({"problem_type": "regression", "answer": "about ten"})
    Traceback (most recent call last):
        ...
    g2rpo.rewards.ground_truth.TruthError: answer of a 'regression' record: truth is 'about ten';
    it must be a finite number
    """
    functions = ACCURACY if functions is None else functions
    problem_type = find_type(record["problem_type"], functions)
    function = functions[problem_type]
    if not is_builtin(function):
        return
    try:
        truth = truth_of(record, function)
        function("", truth)
        for answer in _right_answers(record["answer"], function):
            value = function(answer, truth)
            if value < 1 - 1e-9:
                must = f"be right for itself, but as an answer it scores {value:.2g}"
                raise bad_truth(truth, must)
    except TruthError as error:
        raise TruthError(f"answer of a {problem_type!r} record: {error}") from None


def truth_of(record: Mapping[str, Any], function: RewardFunction) -> Any:
    r"""Return the truth that a reward function takes.

    For multiple choice it is the letter with the text of its option, if the record has options.

    Examples
    --------
    >>> truth_of({"answer": "B", "options": ["A. cat", "B. dog"]}, choice_match)
    'B\ndog'
    """
    truth, options = record["answer"], record.get("options")
    return with_text(truth, options) if options and function is choice_match else truth


def _right_answers(truth: Any, function: RewardFunction) -> list[str]:
    if function is maths_match:
        return [maths_text(truth)]
    takes_texts = any(function is builtin for name, builtin in _BUILTIN if name in TEXTS)
    return all_truths(truth, "be a text") if takes_texts else [truth_text(truth, "be a text")]


_BUILTIN = tuple(ACCURACY.items())


def is_builtin(function: RewardFunction) -> bool:
    """Return whether a function is one of this package; these raise on no answer.

    Examples
    --------
    >>> is_builtin(ACCURACY["maths"]), is_builtin(len)
    (True, False)
    """
    return any(function is builtin for _, builtin in _BUILTIN)


def may_take_long(function: RewardFunction) -> bool:
    """Return whether the time of a function is not bounded by the length of the answer.

    It is bounded for the functions of this package, except for computer algebra; the time of a
    custom function is unknown.

    Parameters
    ----------
    function : callable
        Accuracy or structure: (answer, truth) -> float.

    Returns
    -------
    bool
        Whether to call it in a process with a time limit, as :class:`RewardPool` does.

    Examples
    --------
    >>> may_take_long(ACCURACY["OCR"]), may_take_long(ACCURACY["maths"]), may_take_long(len)
    (False, True, True)
    """
    return function is maths_match or not is_builtin(function)


def registered() -> dict[str, RewardFunction]:
    """Return the entries of :data:`ACCURACY` that were added or replaced since the import.

    Examples
    --------
    >>> registered()
    {}
    """
    return {
        name: function
        for name, function in ACCURACY.items()
        if not any(name == known and function is builtin for known, builtin in _BUILTIN)
    }


def _structure(function: RewardFunction, answer: str, truth: Any) -> float:
    # A custom function has no structure, even under the name of a built-in type.
    shapes = [STRUCTURE.get(name) for name, builtin in _BUILTIN if builtin is function]
    shape = shapes[0] if shapes else None
    return 1.0 if shape is None else shape(answer, truth)


def _finite(value: Any, function: RewardFunction) -> float:
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except Exception:  # the conversion of a custom type may raise anything
        number = math.nan
    if not math.isfinite(number):
        name = function_name(function)
        raise BadRewardError(
            f"reward function {name} returned {shown(value)}; it must return a finite number"
        )
    return number
