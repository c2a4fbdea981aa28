"""Several updates of a step become one line of metrics."""

from __future__ import annotations

import numpy as np

import g2rpo
from g2rpo_trainer.run.update_metrics import Update, update_metrics

TASKS = ["ocr", "max"]


def test_means_and_maxima():
    """A task counts in the updates that it is in, also one that is called like a statistic."""
    first = {
        "kl": 1.0,
        "ratio/max": 3.0,
        "tasks/ratio/max": [3.0, 0.0],
        "tasks/ratio/mean": np.asarray([1.5, 0.0]),
        "entropy": 0.3,
        "tasks/entropy": [0.3, 0.0],
    }
    second = first | {"kl": 2.0, "ratio/max": 2.0, "tasks/ratio/max": [2.0, 2.0]}
    second["tasks/ratio/mean"] = np.asarray([1.0, 0.5])
    third = second | {"tasks/ratio/mean": np.asarray([0.5, 1.5])}
    found = update_metrics(
        [Update(first, [7, 0]), Update(second, np.asarray([2.0, 1.0])), Update(third, [1, 1])],
        TASKS,
    )
    assert found == {
        "kl": 5 / 3,
        "ratio/max": 3.0,
        "ratio/max/ocr": 3.0,
        "ratio/max/max": 2.0,
        "ratio/mean/ocr": 1.0,
        "ratio/mean/max": 1.0,
    }
    assert all(type(value) is float for value in found.values())


def test_a_task_may_be_called_old():
    batch = np.zeros((1, 2)), np.zeros((1, 2)), np.ones(1), np.ones((1, 2), bool)
    _, metrics = g2rpo.g2rpo_loss(
        *batch, ref_logprobs=np.ones((1, 2)), tasks=np.zeros(1, int), num_tasks=1
    )
    names = list(update_metrics([Update(metrics, [2])], ["old"]))
    assert len(names) == len(metrics)
    assert {"kl", "kl/old", "kl_old", "kl_old/old"} <= set(names)


def test_a_task_without_tokens_has_none():
    assert update_metrics([Update({"tasks/kl": [0.0, 2.0]}, [0, 3])], TASKS) == {"kl/max": 2.0}
