"""Base of the built-in tasks: items that are drawn from a seed.

A task turns a *scene* (a small frozen dataclass that says everything about one item) into a
question and an answer, and in image tasks into a picture. A hash of the scene decides whether it
belongs to the training or to the held-out items, so no item is ever in both, for any seed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np

from g2rpo_trainer.record import Record

if TYPE_CHECKING:
    from PIL.Image import Image

LEVELS = (1, 2, 3)
Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")

# One scene in eight is held out.
_HELDOUT_BELOW = 256 // 8

SceneT = TypeVar("SceneT")


@dataclass(frozen=True)
class Item(Generic[SceneT]):
    """A scene with its record and its worked solution (the text between the think tags)."""

    scene: SceneT
    record: Record
    worked: str
    level: int


class Task(ABC, Generic[SceneT]):
    """One family of prompts with one kind of reward.

    Attributes
    ----------
    name : str
        The task's label, used in configurations and metrics.
    family : str
        Family of the paper that the task is modelled on.
    problem_type : str
        Key of the accuracy reward in :data:`g2rpo.rewards.ACCURACY`.
    reward_kind : str
        The shape of the reward's distribution, for people: binary, dense, stepped.
    """

    name: str
    family: str
    problem_type: str
    reward_kind: str

    @abstractmethod
    def scene(self, rng: np.random.Generator, level: int) -> SceneT:
        """Draw the contents of one item of the given difficulty."""

    @abstractmethod
    def problem(self, scene: SceneT) -> str:
        """Return the question."""

    @abstractmethod
    def answer(self, scene: SceneT) -> str:
        """Return the text that belongs between the answer tags."""

    @abstractmethod
    def worked(self, scene: SceneT) -> str:
        """Return a chain of thought that leads to the answer."""

    def images(self, scene: SceneT) -> list[Image]:
        """Return the pictures that the question is about, if there are any."""
        return []

    def options(self, scene: SceneT) -> list[str]:
        """Return the choices of a multiple-choice question, else an empty list."""
        return []

    def item(
        self, seed: int, index: int, *, split: Split = "train", level: int | None = None
    ) -> Item[SceneT]:
        """Return item ``index`` of the stream that ``seed`` and ``split`` name.

        Parameters
        ----------
        seed : int
            Non-negative seed of the stream.
        index : int
            Non-negative position in the stream; items do not depend on their neighbours.
        split : {"train", "heldout"}
            Side of the hash that the scene must fall on.
        level : int, optional
            Difficulty, 1 to 3. By default every item draws its own.

        Returns
        -------
        Item
            The same for the same arguments, on every machine.

        Raises
        ------
        ValueError
            If there is no such split or level.

        Examples
        --------
        >>> from g2rpo_trainer.tasks import TASKS
        >>> item = TASKS["maths"].item(seed=0, index=3, level=1)
        >>> item.record.task, item.record.images[0].size
        ('maths', (56, 56))
        """
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; it must be one of {SPLITS}")
        if level is not None and level not in LEVELS:
            raise ValueError(f"level is {level!r}; it must be one of {LEVELS}, or None for a mix")
        stream = [seed, index, SPLITS.index(split), *self.name.encode()]
        rng = np.random.default_rng(np.random.SeedSequence(stream))
        drawn = int(rng.choice(LEVELS)) if level is None else level
        while True:
            scene = self.scene(rng, drawn)
            if self.split_of(scene) == split:
                return Item(scene, self.record(scene), self.worked(scene), drawn)

    def split_of(self, scene: SceneT) -> Split:
        """Return the side on which a scene lies, which its contents alone decide."""
        digest = blake2b(f"{self.name}:{scene!r}".encode(), digest_size=1).digest()
        return "heldout" if digest[0] < _HELDOUT_BELOW else "train"

    def record(self, scene: SceneT) -> Record:
        """Return the scene as a record."""
        return Record(
            problem=self.problem(scene),
            answer=self.answer(scene),
            problem_type=self.problem_type,
            task=self.name,
            images=self.images(scene),
            options=self.options(scene),
        )


class ImageTask(Task[SceneT]):
    """A task whose questions are about one picture."""

    @abstractmethod
    def draw(self, scene: SceneT) -> Image:
        """Render the scene as an RGB image of `canvas.SIZE` pixels a side."""

    def images(self, scene: SceneT) -> list[Image]:
        """Return the picture."""
        return [self.draw(scene)]


def pick(rng: np.random.Generator, choices: Any) -> Any:
    """Return one of ``choices`` as the Python object it is (NumPy would convert it)."""
    return choices[int(rng.integers(len(choices)))]


def between(rng: np.random.Generator, low: int, high: int) -> int:
    """Return a whole number from ``low`` to ``high``, both included."""
    return int(rng.integers(low, high + 1))
