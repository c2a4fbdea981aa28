"""Multiple choice: the letter of the right option."""

from __future__ import annotations

import re
from typing import Any

from .truth import bad_truth, truth_text

_LETTER = re.compile(r"\(?([A-Za-z])(?:[).:]|\b)")
_MUST = "begin with the letter of an option"


def choice_match(answer: str, truth: Any) -> float:
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
    right = _LETTER.match(truth_text(truth, _MUST))
    if right is None:
        raise bad_truth(truth, _MUST)
    given = _LETTER.match(answer.strip())
    return float(given is not None and given[1].upper() == right[1].upper())
