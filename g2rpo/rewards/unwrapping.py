r"""Removal of emphasis, delimiters, ``\boxed`` and ``Answer:`` around a short answer."""

from __future__ import annotations

import re

LONGEST = 1000
"""Largest number of characters of a short answer."""

_ROUNDS = 12
_LEAD = re.compile(
    r"(?P<mark>\*{1,3}|_{1,3})?(?:(?:so|thus|therefore|hence),?\s+)?(?:the\s+|my\s+)?"
    r"(?:(?:final|correct|right|best)\s+)?(?:answer|option|choice)\b(?(mark)(?:(?P=mark))?)"
    r"\s*(?:is\b(?:\s*:)?|:|=)?(?(mark)(?:(?P=mark))?)\s*(?=\S)",
    re.IGNORECASE,
)
_WRAPPERS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"(\*{1,3}|_{1,3}|`{1,3}|\"|')(?P<inner>(?:(?!\1).)+)\1",
        r"[“‘«](?P<inner>[^“‘«»]+)[”’»]",
        r"\$\$(?P<inner>[^$]+)\$\$",
        r"\$(?P<inner>(?:\\\$|[^$])+)(?<!\\)\$",
        r"\\\((?P<inner>(?:(?!\\[()]).)+)\\\)",
        r"\\\[(?P<inner>(?:(?!\\[\[\]]).)+)\\\]",
        r"\\(?:boxed|fbox|text|mbox|text(?:bf|it|rm|normal)|math(?:bf|it|rm|sf)|boldsymbol)\s*"
        r"\{(?P<inner>.+)\}",
    )
)


def unwrap(text: str) -> str:
    r"""Return a short answer without its wrappers, and a longer text unchanged but stripped.

    Examples
    --------
    >>> unwrap(r"**Answer:** $\boxed{\text{B}}$."), unwrap("the answer is 7"), unwrap("`x+1`")
    ('B', '7', 'x+1')
    >>> unwrap(r"\boxed{7}, \boxed{8}"), unwrap("$7$ or $8$")
    ('\\boxed{7}, \\boxed{8}', '$7$ or $8$')
    """
    text = text.strip()
    if len(text) > LONGEST:
        return text
    for _ in range(_ROUNDS):
        inner = _without_one_wrapper(text)
        if inner == text:
            break
        text = inner
    return text


def _without_one_wrapper(text: str) -> str:
    bare = text[:-1].rstrip() if text[-1:] in (".", "。") else text
    for wrapper in _WRAPPERS:
        match = wrapper.fullmatch(bare)
        if match and _is_balanced(match["inner"]):
            return match["inner"].strip()
    lead = _LEAD.match(text)
    return text[lead.end() :] if lead else text


def _is_balanced(text: str) -> bool:
    depth = 0
    for character in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if character == "{" else -1
        if depth < 0:
            return False
    return depth == 0
