"""The answer format: ``<think>…</think><answer>…</answer>`` and nothing else.

The paper's prompt asks for ``<thinking>``, reasoning models use ``<think>``; both are accepted.
Parsing takes linear time for any text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Some models write tags with spaces or capitals: < answer >, <ANSWER>.
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
    """Return the answer of a response, and whether its format is right.

    Parameters
    ----------
    text : str
        Complete response of the policy.

    Returns
    -------
    Response
        A malformed response may have an answer: format and accuracy are separate rewards.

    Notes
    -----
    A pair of tags is a closing tag and the nearest opening tag before it, so a tag that the thought
    mentions does not open the answer. Tags with spaces or capitals, ``< answer >`` and
    ``<ANSWER>``, are found too, but such a response is malformed.

    White space around the thought and the answer is allowed; a tag inside either, or other text
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
