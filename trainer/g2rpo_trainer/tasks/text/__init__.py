"""Four built-in text tasks, for models that read text only.

Each is the text form of something that the tasks of images ask, with another kind of reward:
arithmetic is binary, a described box dense, a described chart stepped, and a sorted sequence has
the heavy tail of 1 − CER. Items are drawn, split and recorded as those of images are.

Examples
--------
>>> from g2rpo_trainer.tasks.text import TEXT_TASKS
>>> list(TEXT_TASKS)
['arithmetic', 'box', 'bars', 'sorting']
>>> record = TEXT_TASKS["arithmetic"].item(seed=0, index=0).record
>>> record["problem"], record["answer"], record["data_type"]
('What is 33+3?', '36', 'text')
"""

from __future__ import annotations

from typing import Any

from g2rpo_trainer.tasks.base import Task

from .arithmetic import Arithmetic
from .bars import Bars
from .box import Box
from .sorting import Sorting

TEXT_TASKS: dict[str, Task[Any]] = {
    task.name: task for task in (Arithmetic(), Box(), Bars(), Sorting())
}
"""Name -> task of text."""

__all__ = ["TEXT_TASKS"]
