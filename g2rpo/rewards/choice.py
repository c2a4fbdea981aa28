"""Multiple choice: the letter of the right option."""

from __future__ import annotations

import re

_LETTER = re.compile(r"\(?([A-Za-z])(?:[).:]|\b)")


def choice_match(answer: str, truth: str) -> float:
    """Return 1 if the answer begins with the right letter, else 0.

    Parameters
    ----------
    answer, truth : str
        A letter, alone or followed by its option: ``B``, ``(b)``, ``B. left``.

    Returns
    -------
    float
        0 or 1.

    Raises
    ------
    ValueError
        If ``truth`` does not begin with a letter of its own.

    Examples
    --------
    >>> choice_match("(b) left", "B"), choice_match("left", "B")
    (1.0, 0.0)
    """
    right = _LETTER.match(truth.strip())
    if right is None:
        raise ValueError(f"truth is {truth!r}; it must begin with the letter of an option")
    given = _LETTER.match(answer.strip())
    return float(given is not None and given[1].upper() == right[1].upper())
