"""The answer format: ``<think>…</think><answer>…</answer>`` and nothing else.

The paper's prompt says ``<thinking>``, models that were taught to reason say ``<think>``; either is
fine. Reading takes time in proportion to the text, whatever the text is.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Some models write spaces inside of their tags, or capitals: < answer >, <ANSWER>.
_TAG = re.compile(r"<\s*(/\s*)?(think|thinking|answer)\s*>", re.IGNORECASE)
_SHAPES = tuple(
    [f"<{thought}>", f"</{thought}>", "<answer>", "</answer>"] for thought in ("think", "thinking")
)


class Response(NamedTuple):
    """The parts of a response.

    Attributes
    ----------
    answer : str or None
        The text of the last complete pair of answer tags, stripped; None if there is none.
    well_formed : bool
        Whether the response is one thought followed by one answer, and nothing else.
    """

    answer: str | None
    well_formed: bool


def parse_response(text: str) -> Response:
    """Take a response apart.

    Parameters
    ----------
    text : str
        Everything that the policy wrote.

    Returns
    -------
    Response
        An answer is found in a malformed response too: format and accuracy are separate rewards.

    Notes
    -----
    A pair of tags is a closing tag and the nearest opening one before it, so a tag that the thought
    mentions is not taken for the answer's. The answer is found between tags with spaces inside or
    in capitals too, ``< answer >`` and ``<ANSWER>``, but such a response is malformed.

    White space may stand around the thought and the answer; a tag inside either, or any other text
    outside, makes the response malformed.

    Examples
    --------
    >>> parse_response("<think>2+2</think><answer> 4 </answer>")
    Response(answer='4', well_formed=True)
    >>> parse_response("<think>It goes into <answer> tags.</think><answer>4</answer>")
    Response(answer='4', well_formed=False)
    >>> parse_response("so it is < answer >4</ answer >")
    Response(answer='4', well_formed=False)
    >>> parse_response("4")
    Response(answer=None, well_formed=False)
    """
    answer, opened = None, None
    first: list[re.Match[str]] = []
    for tag in _TAG.finditer(text):
        if len(first) < 5:
            first.append(tag)
        if tag[2].lower() != "answer":
            continue
        if tag[1] is None:
            opened = tag.end()
        elif opened is not None:
            answer, opened = slice(opened, tag.start()), None
    return Response(None if answer is None else text[answer].strip(), _is_well_formed(text, first))


def _is_well_formed(text: str, tags: list[re.Match[str]]) -> bool:
    if [tag[0] for tag in tags] not in _SHAPES:
        return False
    outside = (
        text[: tags[0].start()],
        text[tags[1].end() : tags[2].start()],
        text[tags[3].end() :],
    )
    return not any(part.strip() for part in outside)
