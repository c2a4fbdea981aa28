"""Rewards to compare on without a file: the paper's worked example, and four typical shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from g2rpo_cli.comparison.rewards import RewardTable

Rewards: TypeAlias = npt.NDArray[np.float64]
Topology: TypeAlias = Callable[[np.random.Generator, tuple[int, int]], Rewards]

_FIGURE = (
    (0.0, 0.0, 0.0, 0.0, 1.0),
    (0.0, 0.0, 1.0, 1.0, 1.0),
    (0.1, 0.1, 0.1, 0.2, 1.0),
    (0.81, 0.81, 0.82, 0.82, 0.83),
)


# Uniform draws are all that is used of the generator: NumPy may change how it makes others.


def _binary(rng: np.random.Generator, shape: tuple[int, int]) -> Rewards:
    """Right or wrong; prompts from nearly hopeless to nearly certain."""
    chance = rng.random((shape[0], 1))
    return (rng.random(shape) < chance).astype(np.float64)


def _dense(rng: np.random.Generator, shape: tuple[int, int]) -> Rewards:
    """Overlap of boxes: 0 for a miss, else anywhere about the prompt's own level."""
    level = 0.35 + 0.5 * rng.random((shape[0], 1))
    spread = (rng.random(shape) + rng.random(shape) + rng.random(shape) - 1.5) * 0.3
    missed = rng.random(shape) < 0.08
    return np.where(missed, 0.0, np.clip(level + spread, 0.0, 1.0))


def _heavy_tailed(rng: np.random.Generator, shape: tuple[int, int]) -> Rewards:
    """Mostly nothing, now and then something, and rarely very much: a Pareto tail of index 1.5."""
    found = rng.random(shape) < 0.4
    size = 0.1 * (1.0 - rng.random(shape)) ** (-1.0 / 1.5)
    return np.where(found, size, 0.0)


def _nearly_constant(rng: np.random.Generator, shape: tuple[int, int]) -> Rewards:
    """Scores about 0.82 that differ in the third digit, and one response of 3 among them all."""
    rewards = 0.82 + 0.005 * (rng.random(shape) + rng.random(shape) - 1.0)
    rewards[shape[0] // 2, 0] = 3.0
    return np.round(rewards, 3)


#: ``draw(rng, (groups, size))`` -> rewards of that shape, by the name of the shape of reward.
TOPOLOGIES: Mapping[str, Topology] = {
    "binary (maths)": _binary,
    "dense (box IoU)": _dense,
    "sparse, heavy tail (OCR)": _heavy_tailed,
    "nearly constant": _nearly_constant,
}


def topology_rewards(groups: int = 128, size: int = 8, *, seed: int = 0) -> RewardTable:
    """Return one task of each shape in :data:`TOPOLOGIES`, the same for the same seed.

    Lengths are anything from 16 to 512 tokens, whatever the reward.

    Parameters
    ----------
    groups : int, optional
        Prompts a task.
    size : int, optional
        Responses a prompt.
    seed : int, optional
        Seed of the random numbers.

    Examples
    --------
    >>> table = topology_rewards()
    >>> table.rewards.shape, table.task_names[0]
    ((4096,), 'binary (maths)')
    """
    rng = np.random.default_rng(seed)
    rewards = [draw(rng, (groups, size)) for draw in TOPOLOGIES.values()]
    lengths = np.floor(16 + 497 * rng.random(len(rewards) * groups * size))
    return _table(rewards, tuple(TOPOLOGIES), "four built-in shapes of reward", lengths)


def figure_rewards() -> RewardTable:
    """Return the worked example of the paper's Figure 2: four groups of five, a task each.

    The paper has no lengths; here all responses are equally long.

    Examples
    --------
    >>> from g2rpo import match_gaussian
    >>> table = figure_rewards()
    >>> match_gaussian(table.rewards, table.groups)[:5].round(4)
    array([-0.3204, -0.3204, -0.3204, -0.3204,  1.2816])
    """
    names = tuple(" ".join(f"{reward:g}" for reward in group) for group in _FIGURE)
    rewards = [np.asarray([group]) for group in _FIGURE]
    return _table(rewards, names, "the paper's Figure 2", np.ones(20))


def _table(
    rewards: Sequence[Rewards], names: tuple[str, ...], source: str, lengths: Rewards
) -> RewardTable:
    """Return a table of tasks of equal shape (groups, size)."""
    values = np.stack(rewards)
    tasks, groups, size = values.shape
    labels = np.repeat(np.arange(tasks * groups), size)
    return RewardTable(
        values.ravel(), labels, labels // groups, names, source=source, lengths=lengths
    )
