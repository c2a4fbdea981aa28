"""From any source of data to checked records, mixed over tasks.

:func:`open_source` takes the section ``data`` of a configuration, and gives the records of each
step and the held-out ones. Which records a step trains on follows from the seed and the number of
the step alone, so a run that is resumed needs no position. It needs what comes with the extra
``cli``; data sets of the hub and reasoning-gym come with the extra ``data``.

A record passes through the modules in this order: ``opening`` (what a source names) and ``tables``
(rows of files and data sets), ``columns`` with ``questions``, ``images`` and ``videos`` (from a row
to a record), ``stored`` and ``streams`` (the records of each task, stored or drawn on the fly), in
the order that ``mixing`` gives, and ``source`` (all tasks together), of which ``summary`` reports.

Examples
--------
>>> from g2rpo_trainer.data import open_source
>>> from g2rpo_trainer.config import Data
>>> source = open_source(Data())
>>> source.training_records(seed=0, position=0, prompts=1)[0].task
'grounding'
"""

from g2rpo_trainer.record import Record

from .mixing import schedule, shares
from .source import Slot, Source, open_run, open_source
from .summary import Summary, TaskSummary, skipped_text, summary_table
from .videos import Clip, Video

__all__ = [
    "Clip",
    "Record",
    "Slot",
    "Source",
    "Summary",
    "TaskSummary",
    "Video",
    "open_run",
    "open_source",
    "schedule",
    "shares",
    "skipped_text",
    "summary_table",
]
