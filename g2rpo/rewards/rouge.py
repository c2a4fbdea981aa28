"""Open-ended answers: the mean of ROUGE-1, ROUGE-2 and ROUGE-L."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from .ground_truth import all_truths, bad_truth, comparable
from .libraries import library
from .text import numbered

# There are no spaces between kana and ideographs: each of them counts as a word.
_IDEOGRAPHS = (
    ("\u3040", "\u30ff"),
    ("\u3400", "\u9fff"),
    ("\uf900", "\ufaff"),
    ("\uff66", "\uff9f"),
    ("\U00020000", "\U0003ffff"),
)
_SPACE_OF_NO_WIDTH = "\u200b"
_MUST = "contain a word"


def rouge_mean(answer: str, truth: Any) -> float:
    """Return the mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L of two texts.

    Each is ``2 m / (a + t)``: ``a`` and ``t`` count the words (ROUGE-1, ROUGE-L) or the pairs of
    neighbouring words (ROUGE-2) of the answer and of the truth, and ``m`` those that match, for
    ROUGE-L the length of the longest common subsequence.

    Parameters
    ----------
    answer : str
        Answer of the policy.
    truth : str or list of str
        A text with at least one word, or several of them: the best match counts.

    Returns
    -------
    float
        From 0 to 1; 0 if the answer has no word.

    Raises
    ------
    ValueError
        If ``truth`` has no word.

    Notes
    -----
    A word is a run of letters with their marks, digits and underscores of any script, in lower
    case; an ideograph or kana is a word. Joiners and other format characters are ignored. There is
    no stemming. A truth of one word has no pairs, so the mean is of ROUGE-1 and ROUGE-L, and the
    right answer scores 1; the authors' code always gives 0 here.

    References
    ----------
    C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004.

    Examples
    --------
    >>> rouge_mean("A dog sleeps.", "a dog sleeps"), round(rouge_mean("a dog", "a dog sleeps"), 4)
    (1.0, 0.7556)
    """
    given = _words(answer)
    return max(_mean(given, right) for right in _truths(truth))


def _truths(truth: Any) -> list[list[str]]:
    rights = [_words(text) for text in all_truths(truth, _MUST)]
    if not all(rights):
        raise bad_truth(truth, _MUST)
    return rights


def _mean(answer: list[str], truth: list[str]) -> float:
    given, right = numbered(answer, truth)
    if not given:
        return 0.0
    longest = library("rapidfuzz.distance", "ROUGE-L").LCSseq.similarity(given, right)
    scores = [_f1(_shared(given, right), given, right), _f1(longest, given, right)]
    if len(right) > 1:
        pairs = list(pairwise(given)), list(pairwise(right))
        scores.append(_f1(_shared(*pairs), *pairs))
    return min(sum(scores) / len(scores), 1.0)


def _words(text: str) -> list[str]:
    text = comparable(text.lower())
    words = text.translate({ord(character): _apart(character) for character in set(text)}).split()
    return [word for word in words if any(map(str.isalnum, word)) or "_" in word]


def _apart(character: str) -> str:
    # The replacement of a character in a text with spaces between words.
    if any(first <= character <= last for first, last in _IDEOGRAPHS):
        return f" {character} "
    if character.isalnum() or character == "_":
        return character
    category = unicodedata.category(character)
    if category in ("Mn", "Mc"):  # vowel signs, accents
        return character
    return "" if category == "Cf" and character != _SPACE_OF_NO_WIDTH else " "


def _shared(given: Sequence[Any], right: Sequence[Any]) -> int:
    return (Counter(given) & Counter(right)).total()


def _f1(matches: int, given: Sequence[Any], right: Sequence[Any]) -> float:
    return 2 * matches / (len(given) + len(right))
