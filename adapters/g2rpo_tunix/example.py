"""What goes from the rollout to the loss: tunix's example, and what the core's loss needs."""

from __future__ import annotations

from typing import Self

import flax
import jax
import jax.numpy as jnp
from tunix.rl.grpo.grpo_learner import TrainExample

from g2rpo import BatchTotals


@flax.struct.dataclass(frozen=True)
class Slices:
    """Totals of the mini-batch that a micro-batch needs, in one copy for each rollout.

    tunix cuts and shards every array of an example along its first axis, so each of the rows holds
    all of it.

    Attributes
    ----------
    parts : jax.Array
        (B,): the number of micro-batches in the mini-batch.
    tokens, sequences : jax.Array
        (B,), see :class:`g2rpo.BatchTotals`.
    task_tokens, task_entropy : jax.Array
        (B, num_tasks), see :class:`g2rpo.BatchTotals`.
    """

    parts: jax.Array
    tokens: jax.Array
    sequences: jax.Array
    task_tokens: jax.Array
    task_entropy: jax.Array

    @classmethod
    def of(cls, totals: BatchTotals, *, parts: int, size: int) -> Self:
        """Return the totals of a mini-batch of ``size`` rollouts in ``parts`` micro-batches."""
        values = (jnp.asarray(value) for value in (jnp.float32(parts), *totals))
        return cls(*(jnp.broadcast_to(value, (size, *value.shape)) for value in values))

    def totals(self) -> BatchTotals:
        """Return the mini-batch's totals."""
        rows = (self.tokens, self.sequences, self.task_tokens, self.task_entropy)
        return BatchTotals(*(row[0] for row in rows))


@flax.struct.dataclass(frozen=True)
class G2RPOExample(TrainExample):
    """tunix's example with the task of each rollout and the advantage of its length.

    Attributes
    ----------
    tasks : jax.Array or None
        int32, shape (B,).
    length_advantages : jax.Array or None
        Shape (B,), where length is a term of the loss.
    entropy_weights : jax.Array or None
        Weight of each task's entropy term, (B, num_tasks), the same in all rows.
    slices : Slices or None
        Totals of a mini-batch with several micro-batches.
    """

    tasks: jax.Array | None = None
    length_advantages: jax.Array | None = None
    entropy_weights: jax.Array | None = None
    slices: Slices | None = None
