"""The built-in rewards as TRL's reward functions, over the columns of a record.

``accuracy``, ``format`` and ``structure`` take the columns ``problem_type``, ``answer`` and, if
there is one, ``options``; a row whose problem type is None gets no reward. They score in worker
processes of their own, each response within ten seconds. :class:`RecordRewards` takes other limits,
and reward functions for problem types of your own.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from g2rpo.rewards import Components, RewardFunction, RewardPool
from g2rpo.rewards.pool import default_workers

__all__ = ["RecordRewards", "accuracy", "format", "structure"]

_COLUMNS = ("problem_type", "answer", "options")
_COUNTED = {"timeout": "rewards/timeouts", "died": "rewards/crashes", "error": "rewards/errors"}


class RecordRewards:
    """Reward functions for TRL that score each batch once, in processes with a time limit.

    Parameters
    ----------
    workers : int, optional
        Processes; by default one a core, at most 8, divided among the processes that train on this
        machine. 0 scores in the training process, without a time limit.
    timeout : float
        Most time for one response, in seconds.
    functions : mapping, optional
        Problem type -> function of (answer, truth), or its import path ``module:function``.
    skip_errors : bool
        Whether a response whose function fails has no accuracy, rather than ending the run.

    Notes
    -----
    The processes are spawned at the first batch and import the main script, which therefore needs
    ``if __name__ == "__main__":`` around what it does.

    Examples
    --------
    >>> rewards = RecordRewards(workers=0)
    >>> columns = {"problem_type": ["numerical", None], "answer": ["7", None]}
    >>> rewards.accuracy(completions=["<answer>7</answer>", "a poem"], **columns)
    [1.0, None]
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        timeout: float = 10.0,
        functions: Mapping[str, RewardFunction | str] | None = None,
        skip_errors: bool = False,
    ) -> None:
        self._options: dict[str, Any] = {
            "functions": functions,
            "seconds": timeout,
            "skip_errors": skip_errors,
        }
        self._workers = workers
        self._pool: RewardPool | None = None
        self._completions: Any = None
        self._scored: list[Components | None] = []

    def accuracy(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return each answer's accuracy by its problem type; 0 to 1 for the built-in types.

        Raises
        ------
        ValueError
            If the data set has no column ``problem_type`` or ``answer``.
        g2rpo.rewards.RewardError
            If a reward function fails, unless ``skip_errors`` is set.
        """
        return self._component("accuracy", completions, columns)

    def format(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return 1 for one thought and one answer in their tags, else 0."""
        return self._component("format", completions, columns)

    def structure(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return how much of the shape that its problem type asks for each answer has, 0 to 1."""
        return self._component("structure", completions, columns)

    def close(self) -> None:
        """End the processes; the next batch starts new ones."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _component(
        self, name: str, completions: Sequence[Any], columns: Mapping[str, Any]
    ) -> list[float | None]:
        # TRL hands one list to all reward functions of a batch.
        if completions is not self._completions:
            self._scored = self._score(completions, columns)
            self._completions = completions
        values = [None if parts is None else getattr(parts, name) for parts in self._scored]
        return [None if value is None or math.isnan(value) else value for value in values]

    def _score(
        self, completions: Sequence[Any], columns: Mapping[str, Any]
    ) -> list[Components | None]:
        missing = [name for name in _COLUMNS[:2] if name not in columns]
        if missing:
            raise ValueError(
                f"the data set must have the columns problem_type and answer, but has no "
                f"{' and no '.join(missing)}; rename yours, or write a reward function of your own"
            )
        if self._pool is None:
            self._pool = RewardPool(self._process_count(), **self._options)
        known = [row for row, kind in enumerate(columns["problem_type"]) if kind is not None]
        given = [name for name in _COLUMNS if name in columns]
        found = self._pool.score(
            [{name: columns[name][row] for name in given} for row in known],
            [response_text(completions[row]) for row in known],
            numbers=known,
        )
        if (log_metric := columns.get("log_metric")) is not None:
            counts = Counter[str](failure.fault for failure in found.failures)
            for fault, name in _COUNTED.items():
                log_metric(name, float(counts[fault]))
        scored: list[Components | None] = [None] * len(completions)
        for row, parts in zip(known, found.components, strict=True):
            scored[row] = parts
        return scored

    def _process_count(self) -> int:
        if self._workers is not None:
            return self._workers
        return max(1, default_workers() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def response_text(completion: Any) -> str:
    """Return all that the policy wrote, of a text or of messages.

    A thought that a chat template's parser has taken out of the text gets its tags back.

    Examples
    --------
    >>> response_text([{"role": "assistant", "thinking": "3 + 4", "content": "<answer>7</answer>"}])
    '<think>3 + 4</think><answer>7</answer>'
    """
    if isinstance(completion, str):
        return completion
    texts = []
    for message in completion:
        if message.get("role") != "assistant":
            continue
        thought = message.get("reasoning_content") or message.get("thinking")
        content = message.get("content") or ""
        if not isinstance(content, str):
            content = "".join(part.get("text", "") for part in content)
        texts.append((f"<think>{thought}</think>" if thought else "") + content)
    return "".join(texts)


_shared = RecordRewards()
accuracy: Callable[..., list[float | None]] = _shared.accuracy
format: Callable[..., list[float | None]] = _shared.format
structure: Callable[..., list[float | None]] = _shared.structure
