"""Six built-in tasks of images and text, and four of text alone, drawn on the fly from a seed.

The image tasks are modelled on the six families of the paper, each with its kind of reward, so that
a policy of a million parameters on two cores sees the same mix of rewards as a large one on real
data. They need Pillow (and scikit-learn for its handwritten digits): ``pip install "g2rpo[cli]"``.
The text tasks are for models that read text only.

Examples
--------
>>> from g2rpo_trainer.tasks import TASKS, TEXT_TASKS
>>> list(TASKS)
['grounding', 'vqa', 'spatial', 'chart', 'ocr', 'maths']
>>> list(TEXT_TASKS)
['arithmetic', 'box', 'bars', 'sorting']
>>> record = TASKS["vqa"].item(seed=0, index=0).record
>>> record.problem_type, record.images[0].size
('numerical', (56, 56))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import LEVELS, SPLITS, ImageTask, Item, Split, Task
from .shapes import Counting, Grounding, Spatial
from .text import TEXT_TASKS
from .written import Chart, Maths, Ocr

TASKS: dict[str, ImageTask[Any]] = {
    task.name: task for task in (Grounding(), Counting(), Spatial(), Chart(), Ocr(), Maths())
}
"""Name -> task of images."""

TASKS_BY_SOURCE: dict[str, Mapping[str, Task[Any]]] = {"builtin": TASKS, "builtin-text": TEXT_TASKS}
"""``data.source`` of a run's configuration -> name -> task."""

__all__ = [
    "LEVELS",
    "SPLITS",
    "TASKS",
    "TASKS_BY_SOURCE",
    "TEXT_TASKS",
    "ImageTask",
    "Item",
    "Split",
    "Task",
]
