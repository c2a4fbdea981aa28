"""Multiple choice: the right option, by its letter or by its text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from g2rpo._shown import shown

from .ground_truth import TruthError, bad_truth, comparable, one_truth
from .unwrapping import LONGEST, unwrap

_MUST = (
    "be the letter of one option, alone or with its text (B, or B. left); a question with several "
    "right options needs a reward function of its own"
)
_ALONE = re.compile(r"[(\[{<]?\s*([A-Za-z])\s*[)\]}>.:,;。、]*")
_LABEL = re.compile(
    # Not the abbreviations: a.m., i.e.
    r"[(\[{]?(?![A-Za-z]\.[A-Za-z]\.)([A-Za-z])[)\]}]?[.):\]}、\n][)\s]*(?=\S)(.*)",
    re.DOTALL,
)
_WITH_OPTION = re.compile(r"([A-Z])\n(.*)", re.DOTALL)
_SPACED = re.compile(r"([A-Za-z])\s+(\S.*)", re.DOTALL)
# Another letter after the first: "A) or B)", "A. B. C." name no option.
_ANOTHER = re.compile(
    r"\W*(?:(?:or|and)\b\W*)?[(\[{]?[A-Z](?:[.):,\]}]|\s*(?:\n|$))"
    r"|.*\b(?:or|and)\W+[(\[{]?[A-Z][.):\]}]\s*\S",
    re.DOTALL,
)
# LaTeX between the letter and its option: \textbf{(B)}\ 12.
_STYLE = re.compile(r"\\(?:text|math|mbox)[a-z]*\s*\{([^{}]*)\}|\\[ ,;:!]")


def choice_match(answer: str, truth: Any) -> float:
    r"""Return 1 if the answer is the right option, else 0.

    Parameters
    ----------
    answer : str
        The option's letter, alone or before ``.``, ``)`` or ``:``, with or without brackets,
        ``\boxed{…}``, ``$…$``, ``**…**`` and ``Answer:`` around it; or the option's text, if the
        truth contains it.
    truth : str
        The letter, alone or with the option's text: ``B``, ``(b)``, ``B. left``.

    Returns
    -------
    float
        0 or 1. The first word of a sentence (``A dog``) is no letter, and two letters are no
        answer.

    Raises
    ------
    ValueError
        If ``truth`` is not the letter of one option.

    Examples
    --------
    >>> choice_match("(b) left", "B"), choice_match(r"$\boxed{\text{B}}$", "B")
    (1.0, 1.0)
    >>> choice_match("Left", "B. left"), choice_match("a cat", "A"), choice_match("A or B", "A")
    (1.0, 0.0, 0.0)
    """
    right = one_truth(truth, _MUST)
    with_option = _WITH_OPTION.fullmatch(right)
    letter, text = with_option.groups() if with_option else read_label(right)
    if letter is None:
        raise bad_truth(truth, _MUST)
    if len(answer) > max(LONGEST, 2 * len(right)):
        return 0.0
    given, _ = read_label(answer, text)
    names_text = text and plain(unwrap(answer)) in (plain(text), plain(f"{letter} {text}"))
    return float(given == letter or bool(names_text))


def with_text(truth: Any, options: Sequence[str]) -> Any:
    r"""Return the letter of a multiple-choice truth with its option's text, else the truth itself.

    The text is on a line of its own, since it may look like a letter itself.

    Examples
    --------
    >>> with_text("B", ["A. cat", "B. dog"]), with_text("E", ["A. cat"]), with_text("b", ["x", "y"])
    ('B\ndog', 'E', 'B\ny')
    """
    if not isinstance(truth, str):
        return truth
    match = _ALONE.fullmatch(unwrap(truth))
    number = -1 if match is None else ord(match[1].upper()) - ord("A")
    texts = option_texts(options)
    if not 0 <= number < len(texts):
        return truth
    # An option text that is the letter of an option is ambiguous.
    letters = [chr(ord("A") + index) for index in range(len(texts))]
    if texts[number].strip().upper() in letters:
        return truth
    return f"{letters[number]}\n{texts[number]}"


def option_texts(options: Sequence[str]) -> list[str]:
    """Return the options without their letters, if every option has one.

    Raises ValueError if all have letters that are not A, B, C, … in this order.

    Examples
    --------
    >>> option_texts(["A. cat", "B. dog"]), option_texts(["(a) 7", "(b) 8"])
    (['cat', 'dog'], ['7', '8'])
    >>> option_texts(["A cat", "A dog"])
    ['A cat', 'A dog']
    """
    letters = [chr(ord("A") + index) for index in range(len(options))]
    for pattern, is_sure in ((_LABEL, True), (_SPACED, False)):
        labels = [pattern.fullmatch(option.strip()) for option in options]
        if len(options) > 1 - is_sure and all(labels):
            own = [label[1].upper() for label in labels if label]
            if own == letters:
                return [label[2].strip() for label in labels if label]
            if is_sure and len(set(own)) > 1:
                raise TruthError(
                    f"options is {shown(list(options))}; their letters must be "
                    f"{', '.join(letters)}, in this order"
                )
    return list(options)


def plain(text: str) -> str:
    """Return the text of an option without case, extra white space and a final full stop.

    Examples
    --------
    >>> plain(" A  Dog. ") == plain("a dog")
    True
    """
    return " ".join(comparable(text).casefold().split()).rstrip(".。 ")


def read_label(text: str, option: str = "") -> tuple[str | None, str]:
    """Return the option letter of a text, if it has one, and the rest of the text.

    `option` is the text of the right option, which may begin with a letter that is no label.

    Examples
    --------
    >>> read_label("(b) left"), read_label("B"), read_label("left"), read_label("A) or B)")
    (('B', 'left'), ('B', ''), (None, 'left'), (None, 'A) or B)'))
    """
    if len(text) > LONGEST:
        return None, text.strip()
    bare = _STYLE.sub(r"\1 ", unwrap(unicodedata.normalize("NFKC", text)))
    if match := _ALONE.fullmatch(bare):
        return match[1].upper(), ""
    match = _LABEL.fullmatch(bare)
    if match is None or (option and plain(bare) == plain(option)):
        return None, bare
    if not (option and plain(match[2]) == plain(option)) and _ANOTHER.match(match[2]):
        return None, bare
    return match[1].upper(), match[2]
