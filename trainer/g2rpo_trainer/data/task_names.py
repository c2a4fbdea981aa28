"""Names that a task may have, so that no report takes one for something else."""

from __future__ import annotations

from g2rpo._shown import shown

from .broken import BrokenRecord

LONGEST = 100
"""Most characters of a task's name: it stands in tables and in the names of metrics."""


def check_task_name(name: str) -> None:
    """Raise BrokenRecord if a task may not be called so.

    Metrics put the task behind a slash, ``reward/ocr``, and reports name the mean over the tasks
    ``mean``.

    Examples
    --------
    >>> check_task_name("spatial grounding")
    >>> check_task_name("mean")
    Traceback (most recent call last):
        ...
    g2rpo_trainer.data.broken.BrokenRecord: task 'mean' has the name of the mean over the tasks;
    name it otherwise in the column task_type
    """
    if name == "mean":
        fault = "has the name of the mean over the tasks"
    elif "/" in name:
        fault = "has a slash in its name, which divides the names of metrics"
    elif not name.isprintable():
        fault = "has characters in its name that cannot be printed"
    elif len(name) > LONGEST:
        fault = f"has a name of {len(name)} characters; there can be {LONGEST}"
    else:
        return
    raise BrokenRecord(f"task {shown(name)} {fault}; name it otherwise in the column task_type")
