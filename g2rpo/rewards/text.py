"""Read text: 1 − character error rate."""

from __future__ import annotations


def character_accuracy(answer: str, truth: str) -> float:
    """Return ``max(0, 1 - edits / len(truth))``, edits being the Levenshtein distance.

    Parameters
    ----------
    answer : str
        What the policy read; surrounding white space does not count.
    truth : str
        What is written, not empty.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    ValueError
        If ``truth`` is empty.

    Examples
    --------
    >>> character_accuracy("7A8", "7A8"), character_accuracy("78", "7A8B")
    (1.0, 0.5)
    """
    from rapidfuzz.distance import Levenshtein

    expected = truth.strip()
    if not expected:
        raise ValueError("truth is empty; it must contain the text that is to be read")
    return max(0.0, 1 - Levenshtein.distance(answer.strip(), expected) / len(expected))
