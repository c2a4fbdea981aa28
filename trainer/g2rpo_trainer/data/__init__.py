"""From any source of data to checked records, mixed over tasks.

:func:`open_source` takes the section ``data`` of a configuration, and gives the records of each
step and the held-out ones. Which records a step trains on follows from the seed and the number of
the step alone, so a run that is resumed needs no position. It needs what comes with the extra
``cli``; data sets of the hub and reasoning-gym come with the extra ``data``.

Examples
--------
>>> from g2rpo_trainer.data import open_source
>>> from g2rpo_trainer.config import Data
>>> source = open_source(Data())
>>> source.training_records(seed=0, position=0, prompts=1)[0]["task_type"]
'grounding'
"""

from .mixing import schedule, shares
from .record import PromptRecord
from .report import skipped_text, summary_table
from .source import Source, open_source
from .summary import Summary, TaskSummary
from .videos import Clip, Video

__all__ = [
    "Clip",
    "PromptRecord",
    "Source",
    "Summary",
    "TaskSummary",
    "Video",
    "open_source",
    "schedule",
    "shares",
    "skipped_text",
    "summary_table",
]
