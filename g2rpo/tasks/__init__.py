"""Six built-in image and text tasks, drawn on the fly from a seed.

They stand for the six families of the paper, each with its kind of reward, so that a policy of a
million parameters on two cores meets the same mix of rewards as a large one on real data. The tasks
need Pillow (and scikit-learn for its handwritten digits): ``pip install "g2rpo[cli]"``.

Examples
--------
>>> from g2rpo.tasks import TASKS
>>> list(TASKS)
['grounding', 'vqa', 'spatial', 'chart', 'ocr', 'maths']
>>> record = TASKS["vqa"].item(seed=0, index=0).record
>>> record["problem_type"], record["data_type"]
('numerical', 'image')
"""

from __future__ import annotations

from typing import Any

from .base import LEVELS, SPLITS, Item, Record, Split, Task
from .chart import Chart
from .grounding import Grounding
from .maths import Maths
from .ocr import Ocr
from .sheet import contact_sheet
from .spatial import Spatial
from .vqa import Counting

TASKS: dict[str, Task[Any]] = {
    task.name: task for task in (Grounding(), Counting(), Spatial(), Chart(), Ocr(), Maths())
}

__all__ = ["LEVELS", "SPLITS", "TASKS", "Item", "Record", "Split", "Task", "contact_sheet"]
