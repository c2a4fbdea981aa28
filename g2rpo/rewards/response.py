"""The answer format: ``<think>…</think><answer>…</answer>`` and nothing else."""

from __future__ import annotations

import re
from typing import NamedTuple

_WHOLE = re.compile(
    r"\s*<think>(?P<thought>.*?)</think>\s*<answer>(?P<answer>.*?)</answer>\s*", re.S
)
_ANSWER = re.compile(r"<answer>(?P<answer>.*?)</answer>", re.S)
_TAG = re.compile(r"</?(?:think|answer)>")


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

    Examples
    --------
    >>> parse_response("<think>2+2</think><answer> 4 </answer>")
    Response(answer='4', well_formed=True)
    >>> parse_response("so it is <answer>4</answer>")
    Response(answer='4', well_formed=False)
    >>> parse_response("4")
    Response(answer=None, well_formed=False)
    """
    whole = _WHOLE.fullmatch(text)
    if whole and not any(_TAG.search(part) for part in whole.groups()):
        return Response(whole["answer"].strip(), True)
    answers = _ANSWER.findall(text)
    return Response(answers[-1].strip() if answers else None, False)
