"""How hard each task pulls at the weights: the norm of its own gradient, exactly, on a few prompts.

Advantages of equal size are meant to give tasks an equal say. Whether they do shows in the gradient
alone, which also depends on lengths, on the shaping terms and on the model.
"""

from __future__ import annotations

import jax
import numpy as np
import optax

from g2rpo.run.description import RunDescription
from g2rpo.run.metrics import equity_metrics

from .policy_model import Policy
from .update import Batch, accumulate_gradient, batch_totals


def gradient_equity(
    policy: Policy, batch: Batch, description: RunDescription, step: int
) -> dict[str, float]:
    """Measure each task's own gradient and how unequal they are, every ``output.equity_steps``.

    It takes ``output.equity_prompts`` prompts of each task; where one has fewer in the batch, all
    tasks have that many, for a mean over fewer samples has a larger norm. The gradients of all
    tasks add up to that of one update with these responses.

    Parameters
    ----------
    policy : Policy
        Whose gradient it is.
    batch : Batch
        The rollouts of a step, before its update.
    description : RunDescription
        Of the run, as it is for this step.
    step : int
        From 1.

    Returns
    -------
    dict of str to float
        ``equity/grad_norm/<task>``, and ``equity/ratio``: the largest over the smallest. Empty in
        all other steps.

    Notes
    -----
    All tasks have equally many prompts, so that the gradient is compiled once for all of them.
    """
    every = description.output.equity_steps
    if not every or step % every:
        return {}
    names, tasks = description.data.tasks, np.asarray(batch.tasks)[:, 0]
    rows_of = _rows_of_each_task(tasks, description.output.equity_prompts)
    totals = batch_totals(batch.rows(np.concatenate(list(rows_of.values()))), num_tasks=len(names))
    norms = {}
    for task, rows in rows_of.items():
        gradient, _ = accumulate_gradient(policy, batch.rows(rows), totals, description)
        norms[names[task]] = float(_norm(gradient))
    return equity_metrics(norms)


_norm = jax.jit(optax.tree.norm)


def _rows_of_each_task(tasks: np.ndarray, prompts: int) -> dict[int, np.ndarray]:
    """Return the same number of prompts of every task that is there, by the task's number."""
    rows_of = {int(task): np.flatnonzero(tasks == task) for task in np.unique(tasks)}
    count = min(prompts, *map(len, rows_of.values()))
    return {task: rows[:count] for task, rows in rows_of.items()}
