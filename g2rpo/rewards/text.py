"""OCR: 1 − word error rate, 1 − character error rate, of texts in composed form (NFC)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .ground_truth import all_truths, comparable
from .libraries import library

_MUST = "contain the text that is to be read"


def word_accuracy(answer: str, truth: Any) -> float:
    """Return ``max(0, 1 - WER)``: one less the word error rate.

    The word error rate is the smallest number of words to insert, delete or replace, over the
    number of words of the truth.

    Parameters
    ----------
    answer : str
        Text of the policy. Words are separated by white space; letter case counts.
    truth : str or list of str
        Text in the image, not empty; a list of texts if several are right: the best match counts.

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
    >>> word_accuracy("no  parking here", "no parking here"), word_accuracy("parking", "no parking")
    (1.0, 0.5)
    """
    given = comparable(answer).split()
    rights = [comparable(right).split() for right in all_truths(truth, _MUST)]
    return max(_accuracy(*numbered(given, right)) for right in rights)


def character_accuracy(answer: str, truth: Any) -> float:
    """Return ``max(0, 1 - edits / len(truth))`` with the Levenshtein distance ``edits``.

    Parameters
    ----------
    answer : str
        Text of the policy; surrounding white space is ignored.
    truth : str or list of str
        Text in the image, not empty; a list of texts if several are right: the best match counts.

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
    given = comparable(answer.strip())
    return max(_accuracy(given, comparable(right)) for right in all_truths(truth, _MUST))


def numbered(*texts: Sequence[str]) -> list[list[int]]:
    """Return sequences of words as sequences of numbers, with equal numbers for equal words.

    RapidFuzz compares the elements of a list by their hashes; those of small integers are unique.

    Examples
    --------
    >>> numbered(["to", "be"], ["be"])
    [[0, 1], [1]]
    """
    numbers: dict[str, int] = {}
    return [[numbers.setdefault(word, len(numbers)) for word in words] for words in texts]


def _accuracy(given: Sequence[Any], expected: Sequence[Any]) -> float:
    distance = library("rapidfuzz.distance", "the distance of two texts").Levenshtein.distance
    # A distance beyond the length of the truth gives 0, so RapidFuzz may stop there.
    edits: int = distance(given, expected, score_cutoff=len(expected))
    return max(0.0, 1 - edits / len(expected))
