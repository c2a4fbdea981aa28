"""One prompt with its right answer: from the data to the policy and the rewards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from g2rpo._shown import clipped

if TYPE_CHECKING:
    from PIL.Image import Image

    from .data.videos import Video


FORMAT_INSTRUCTION = (
    "Think first, then answer, exactly in this form: "
    "<think>your reasoning</think><answer>your answer</answer>"
)
"""How a model is told to answer, in the system message of every prompt."""


class BrokenRecord(ValueError):
    """A record cannot be used; the text says what it is and what it must be, without its place."""

    def __init__(self, text: str) -> None:
        super().__init__(clipped(text, 500))


@dataclass(frozen=True)
class Record:
    """One prompt with its right answer.

    Attributes
    ----------
    problem : str
        The question; of a conversation the text of its last message.
    answer : str, list of str or dict
        The right answer, or several; of reasoning-gym the entry that its scorer takes.
    problem_type : str
        Key of the accuracy reward, such as those of :data:`g2rpo.rewards.ACCURACY`.
    task : str
        Label of the family of prompts.
    images : list of Image
        RGB Pillow images.
    videos : list of Video
        Decoded when they are read.
    options : list of str
        Choices of a multiple-choice question with their letters.
    messages : list of dict, optional
        The conversation, contents as parts, if a prompt is more than images, videos and one
        question after them.
    place : str
        Place of the record in its file, such as ``"train.jsonl, line 7"``, for errors and samples.

    Examples
    --------
    >>> Record("2+2?", "4", "numerical", "sums").task
    'sums'
    """

    problem: str
    answer: Any
    problem_type: str
    task: str
    images: list[Image] = field(default_factory=list)
    videos: list[Video] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    messages: list[dict[str, Any]] | None = None
    place: str = ""

    def as_row(self) -> dict[str, Any]:
        """Return the columns of the paper's released data, which :mod:`g2rpo.rewards` takes.

        Examples
        --------
        >>> from g2rpo.rewards import score
        >>> score(Record("2+2?", "4", "numerical", "sums").as_row(), "<answer>4</answer>").accuracy
        1.0
        """
        return {
            "problem": self.problem,
            "images": self.images,
            "answer": self.answer,
            "problem_type": self.problem_type,
            "data_type": "video" if self.videos else "image" if self.images else "text",
            "task_type": self.task,
            "options": self.options,
        }


def conversation(record: Record, *, instruct: bool = True) -> list[dict[str, Any]]:
    """Return the turns of a record, which begin with how to answer.

    Parameters
    ----------
    record : Record
        A question with images and videos before it, or a conversation of its own.
    instruct : bool
        Say how to answer; False leaves the turns as they are.

    Returns
    -------
    list of dict
        Contents as parts.
    """
    instruction = {"type": "text", "text": FORMAT_INSTRUCTION}
    messages = record.messages
    if not messages:
        images = [{"type": "image"} for _ in record.images]
        videos = [{"type": "video"} for _ in record.videos]
        question = {"type": "text", "text": record.problem}
        messages = [{"role": "user", "content": [*images, *videos, question]}]
    if not instruct:
        return list(messages)
    if messages[0]["role"] == "system":
        first, *rest = messages
        return [{**first, "content": [*first["content"], instruction]}, *rest]
    return [{"role": "system", "content": [instruction]}, *messages]
