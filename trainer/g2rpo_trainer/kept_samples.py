"""Some answers to held-out items that a run keeps, with small copies of their images."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from g2rpo._shown import clipped
from g2rpo_trainer.answers import Sample
from g2rpo_trainer.record import Record

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["KeptSamples"]

# Together they bound what a run keeps to about two megabytes.
_MOST_ITEMS, _ITEMS_OF_TASK, _RESPONSES = 64, 4, 2
_RESPONSE_CHARACTERS, _PROBLEM_CHARACTERS, _ANSWER_CHARACTERS = 4000, 2000, 500
_IMAGES, _PIXELS = 2, 240
# A drawing is sharper and smaller as PNG, a photograph as JPEG.
_LARGEST_PNG = 8 * 1024

_OF_RESPONSE = ("response", "reward", "accuracy", "format", "length", "ended")


class KeptSamples:
    """The first items of each task with the first responses to them.

    They are the same items in every evaluation, so that the answers before and after a run stand
    beside each other.

    Parameters
    ----------
    tasks : sequence of str
        Names of the tasks; beyond 64 the first ones are kept.

    Examples
    --------
    >>> kept = KeptSamples(["ocr"])
    >>> sample = {"task": "ocr", "item": 0, "problem": "?", "answer": "B", "response": "A"}
    >>> kept.add([sample, sample | {"response": "B"}, sample | {"item": 99}])
    >>> [[each["response"] for each in row["responses"]] for row in kept.rows()]
    [['A', 'B']]
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        items = max(1, min(_ITEMS_OF_TASK, _MOST_ITEMS // max(1, len(tasks))))
        #: Number of items kept of each task.
        self.items: dict[str, int] = dict.fromkeys(tasks[:_MOST_ITEMS], items)
        self._rows: dict[tuple[str, int], dict[str, Any]] = {}

    def add(self, samples: Sequence[Sample]) -> None:
        """Take responses of an evaluation, as :meth:`g2rpo_trainer.answers.Answers.samples`."""
        for sample in samples:
            task, item = sample["task"], sample["item"]
            if item >= self.items.get(task, 0):
                continue
            row = self._rows.setdefault((task, item), _row(sample))
            if len(row["responses"]) < _RESPONSES:
                of_response = {name: sample[name] for name in _OF_RESPONSE if name in sample}
                of_response["response"] = clipped(sample["response"], _RESPONSE_CHARACTERS)
                row["responses"].append(of_response)

    def add_images(self, task: str, records: Sequence[Record]) -> None:
        """Add small copies of the images of a task's first items, and of a frame of each video."""
        for item, record in enumerate(records):
            if (row := self._rows.get((task, item))) is not None:
                row["images"] = [_small(image) for image in _pictures(record)]

    def rows(self) -> list[dict[str, Any]]:
        """Return a row an item: ``task``, ``item``, ``problem``, ``answer``, ``responses``."""
        return list(self._rows.values())


def _row(sample: Sample) -> dict[str, Any]:
    answer = sample["answer"]
    # The answer of reasoning-gym is an entry, of which its own answer says most.
    answer = answer.get("answer", answer) if isinstance(answer, dict) else answer
    text = answer if isinstance(answer, str) else json.dumps(answer, default=str)
    return {
        "task": sample["task"],
        "item": sample["item"],
        "problem": clipped(sample["problem"], _PROBLEM_CHARACTERS),
        "answer": clipped(text, _ANSWER_CHARACTERS),
        "responses": [],
    }


def _pictures(record: Record) -> list[Image]:
    from PIL import Image

    pictures = [image.copy() for image in record.images[:_IMAGES]]
    for video in record.videos[: _IMAGES - len(pictures)]:
        frames = video.read().frames
        pictures.append(Image.fromarray(frames[len(frames) // 2]))
    return pictures


def _small(image: Image) -> str:
    """Return a small copy as the address of its data."""
    image = image.convert("RGB")
    image.thumbnail((_PIXELS, _PIXELS))
    kind, data = "png", _encoded(image, "PNG", optimize=True)
    if len(data) > _LARGEST_PNG:
        kind, data = "jpeg", _encoded(image, "JPEG", quality=80)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _encoded(image: Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
