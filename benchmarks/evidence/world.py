"""Six simulated tasks: prompts, right answers, responses and rewards, for many seeds at once.

A prompt is a point of a plane and the number of its task. An answer is a few tokens, which depend
on the task and mostly on the point; after the last of them a response should stop. The reward is a
function of the share of right tokens. Its shape differs between tasks, as in the built-in run: all
or nothing, an overlap, steps, or an error rate with a heavy tail.

Letters of shapes: S seeds, K tasks, P prompts (those of a task next to each other), G responses to
a prompt, T places of a response, V tokens, F features.

Every seed draws all its random numbers itself, from generators that are named by seed, purpose and
step. So a seed's result does not depend on the other seeds, up to rounding, and two settings with
the same seed meet the same prompts and the same noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

LONGEST, TOKENS, FEATURES = 12, 7, 48
STOP = TOKENS - 1


@dataclass(frozen=True)
class Task:
    """A task: length of a right answer, shape of the reward, and length target, all in tokens.

    The first ``opening`` tokens of the answer are the same for all prompts of the task, as most of
    a thought or of the markup of a box is; the other ``answer`` tokens depend on the prompt.
    """

    name: str
    opening: int
    answer: int
    shape: str
    target: tuple[float, float, float, float]

    @property
    def length(self) -> int:
        """Return the tokens of a right answer without its stop."""
        return self.opening + self.answer


TASKS = (
    Task("grounding", 4, 4, "overlap", (0, 0, 9, 11)),
    Task("vqa", 0, 1, "binary", (0, 0, 2, 4)),
    Task("spatial", 0, 2, "binary", (0, 0, 3, 6)),
    Task("chart", 1, 2, "steps", (0, 0, 4, 7)),
    Task("ocr", 1, 4, "error-rate", (0, 0, 6, 9)),
    Task("maths", 5, 3, "binary", (4, 9, 11, 12)),
)
TARGETS = np.asarray([task.target for task in TASKS], np.float64)


@dataclass(frozen=True)
class Prompts:
    """Prompts: ``features`` (S, P, F), right tokens ``answers`` (S, P, T), and ``tasks`` (P,)."""

    features: Floats
    answers: Integers
    tasks: Integers


@dataclass(frozen=True)
class Rollouts:
    """Responses: ``tokens`` (S, P, G, T), ``mask`` up to and including the stop, and ``share``.

    ``share`` (S, P, G) is the share of the answer's tokens that are right.
    """

    tokens: Integers
    mask: Flags
    share: Floats

    @property
    def lengths(self) -> Integers:
        """Return the lengths (S, P, G) in tokens, the stop included."""
        return self.mask.sum(axis=-1)


class World:
    """Features and right answers of S seeds.

    Parameters
    ----------
    seeds : sequence of int
        One world each.
    """

    def __init__(self, seeds: range) -> None:
        self.seeds = seeds
        shapes = ((len(TASKS), FEATURES), (2, FEATURES), (len(TASKS), LONGEST, TOKENS - 1, 2))
        self._by_task, self._by_place, self._truth = (
            self.draw(f"world {number}", 0, lambda rng, shape=shape: rng.normal(size=shape))
            for number, shape in enumerate(shapes)
        )

    def draw(
        self, purpose: str, step: int, function: Callable[[np.random.Generator], Floats]
    ) -> Floats:
        """Return random numbers (S, …), each seed's from a generator of its own."""
        words = list(purpose.encode())
        return np.stack([function(np.random.default_rng([s, step, *words])) for s in self.seeds])

    def prompts(self, purpose: str, step: int, count: int) -> Prompts:
        """Return ``count`` prompts of each task."""
        tasks = np.repeat(np.arange(len(TASKS)), count)
        place = self.draw(f"{purpose} prompts", step, lambda rng: rng.normal(size=(len(tasks), 2)))
        inside = 2 * place @ self._by_place + self._by_task[:, tasks]
        directions = self._truth[:, tasks].reshape(*place.shape[:2], -1, 2)
        scores = (directions @ place[..., None]).reshape(*place.shape[:2], LONGEST, TOKENS - 1)
        opening, lengths = (
            np.asarray([getattr(task, name) for task in TASKS])[tasks, None]
            for name in ("opening", "length")
        )
        is_fixed = np.arange(LONGEST) < opening
        answers = np.where(
            is_fixed, directions[..., 0].reshape(scores.shape).argmax(-1), scores.argmax(-1)
        )
        answers[:, np.arange(LONGEST) >= lengths] = STOP
        return Prompts(np.tanh(inside) / np.sqrt(FEATURES), answers, tasks)

    def sample(
        self, purpose: str, step: int, logits: Floats, prompts: Prompts, size: int
    ) -> Rollouts:
        """Return ``size`` responses to each prompt, from logits (S, P, T, V)."""
        shape = (logits.shape[1], size, LONGEST)
        uniform = self.draw(f"{purpose} tokens", step, lambda rng: rng.random(shape))
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        edges = weights.cumsum(axis=-1)[..., :-1] / weights.sum(axis=-1, keepdims=True)
        tokens = (uniform[..., None] >= edges[:, :, None]).sum(axis=-1)
        stops = tokens == STOP
        mask = stops.cumsum(axis=-1) - stops == 0
        needed = prompts.answers != STOP
        hits = (tokens == prompts.answers[:, :, None]) & mask & needed[:, :, None]
        return Rollouts(tokens, mask, hits.sum(axis=-1) / needed.sum(axis=-1)[..., None])

    def rewards(self, purpose: str, step: int, share: Floats, tasks: Integers) -> Floats:
        """Return the rewards (S, P, G) of responses by the shapes of their tasks."""
        uniform = self.draw(f"{purpose} overlap", step, lambda rng: rng.random(share.shape[1:]))
        normal = self.draw(f"{purpose} errors", step, lambda rng: rng.normal(size=share.shape[1:]))
        partly = 0.8 + 0.2 * uniform
        by_shape = {
            "binary": share == 1,
            "overlap": share**2 * partly,
            "steps": np.round(10 * share * partly) / 10,
            "error-rate": np.maximum(0, 1 - (1 - share) * np.exp(0.75 * normal)),
        }
        found = np.empty_like(share)
        for number, task in enumerate(TASKS):
            own = tasks == number
            found[:, own] = by_shape[task.shape][:, own]
        return found


def task_means(values: npt.NDArray[Any], tasks: Integers) -> Floats:
    """Return the means (S, K) of values (S, P, …) of each task."""
    flat = values.reshape(*values.shape[:2], -1)
    return np.stack([flat[:, tasks == k].mean(axis=(1, 2)) for k in range(len(TASKS))], axis=1)
