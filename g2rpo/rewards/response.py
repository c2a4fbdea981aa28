"""The answer format: ``<think>…</think><answer>…</answer>`` and nothing else.

The paper's prompt says ``<thinking>``, models that were taught to reason say ``<think>``; either is
fine. Reading takes time in proportion to the text, whatever the text is.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import NamedTuple

_TAG = re.compile(r"</?(?:think|thinking|answer)>")
_OPEN, _CLOSE = "<answer>", "</answer>"
_SHAPES = tuple(
    (f"<{thought}>", f"</{thought}>", _OPEN, _CLOSE) for thought in ("think", "thinking")
)


class Response(NamedTuple):
    """The parts of a response.

    Attributes
    ----------
    answer : str or None
        The text of the last answer tags, stripped; None if there are none.
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
    White space may stand around the thought and the answer; a tag inside either, or any other text
    outside, makes the response malformed.

    Examples
    --------
    >>> parse_response("<think>2+2</think><answer> 4 </answer>")
    Response(answer='4', well_formed=True)
    >>> parse_response("so it is <answer>4</answer>")
    Response(answer='4', well_formed=False)
    >>> parse_response("4")
    Response(answer=None, well_formed=False)
    """
    return Response(_last_answer(text), _is_well_formed(text))


def _is_well_formed(text: str) -> bool:
    tags = list(islice(_TAG.finditer(text), 5))
    if tuple(tag[0] for tag in tags) not in _SHAPES:
        return False
    outside = (
        text[: tags[0].start()],
        text[tags[1].end() : tags[2].start()],
        text[tags[3].end() :],
    )
    return not any(part.strip() for part in outside)


def _last_answer(text: str) -> str | None:
    # From an opening tag to the closing one after it: what opens again in between is part of it.
    answer, closed = None, 0
    while (opened := text.find(_OPEN, closed)) >= 0:
        start = opened + len(_OPEN)
        end = text.find(_CLOSE, start)
        if end < 0:
            break
        answer, closed = (start, end), end + len(_CLOSE)
    return None if answer is None else text[slice(*answer)].strip()
