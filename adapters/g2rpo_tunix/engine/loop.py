"""A run with tunix's own loop in the middle, which calls back after every step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from g2rpo.run.description import RunDescription
from g2rpo.run.display import Display
from g2rpo.run.evaluation import Evaluation
from g2rpo.run.loop import Completions, Metrics, Run
from g2rpo.run.progress import Progress
from g2rpo.run.schedule import learning_rate_factor
from g2rpo.run.supported import refuse_unsupported

from .cluster import make_cluster, make_mesh, save_actor
from .evaluation import evaluate_policy
from .options import SUPPORTED, learner_config
from .policy import load_policy
from .prompts import Prompts, Scores, longest_prompt
from .stepping import SteppingLearner

_STATE = "trainer_state.json"


def train(
    description: RunDescription, *, resume: bool = False, display: Display | None = None
) -> dict[str, Any]:
    """Train a policy as described, and return the summary.

    Parameters
    ----------
    description : RunDescription
        The run; ``output.dir`` is its folder.
    resume : bool
        Go on from the newest checkpoint in the folder.
    display : Display, optional
        Shows the progress.

    Returns
    -------
    dict
        What ``summary.json`` holds: held-out reward and length per task before and after, steps,
        seconds, seed and estimator.

    Raises
    ------
    RunError
        If the folder already holds a run, or none to resume, the device is missing, or the
        description asks for what this engine does not do.
    Interrupted
        After Ctrl-C or SIGTERM, once the step is finished and saved.
    """
    refuse_unsupported(description, SUPPORTED)
    return _Run(description).train(resume=resume, display=display)


class _Run(Run):
    supported = SUPPORTED

    def load(self, checkpoint: Path | None) -> None:
        model, steps = self.description.model, self.description.optimization.steps
        mesh = make_mesh(model.device)
        policy = load_policy(model.name, mesh, model.dtype)
        longest = longest_prompt(self.description, policy, steps)
        self.cluster = make_cluster(self.description, policy, mesh, longest, checkpoint)
        if checkpoint:
            state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
            self.progress = Progress.from_json(state["progress"])

    def take_steps(self) -> None:
        self._prompts = Prompts(self.description, self.progress.step)
        self._scores = Scores(self.scorer, self._prompts)
        learner = SteppingLearner(
            self._after_step,
            self.cluster,
            learner_config(self.description),
            self._scores.functions(),
        )
        learner.train(self._prompts)

    def _after_step(self, step: int, metrics: Metrics, columns: Any, example: Any) -> None:
        options = self.description.optimization
        self.progress.step = step
        self.progress.position = step * self.description.rollout.prompts_per_step
        metrics["learning_rate"] = options.learning_rate * learning_rate_factor(options, step - 1)
        self.end_step(metrics, self._table(columns, example))
        if step == options.steps:
            self.save()
        else:
            self.stop_if_asked()

    def _table(self, columns: Any, example: Any) -> Completions:
        rewards = self._scores.rewards
        assert rewards is not None  # a step scores its rollouts
        values = {
            "record": columns["place"],
            "task": columns["task"],
            "prompt": columns["prompts"],
            "response": self._scores.texts,
            "length": np.asarray(example.completion_mask).sum(axis=1),
            "advantage": np.asarray(example.advantages),
            **rewards._asdict(),
        }
        plain = [np.asarray(column).tolist() for column in values.values()]
        return [dict(zip(values, row, strict=True)) for row in zip(*plain, strict=True)]

    def evaluate(self, advance: Callable[[int], None]) -> Evaluation:
        return evaluate_policy(self.cluster, self.description, self.scorer, advance=advance)

    def checkpoint(self) -> Callable[[Path], None]:
        state = {"progress": self.progress.to_json()}

        def write(path: Path) -> None:
            save_actor(path, self.cluster)
            (path / _STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")

        return write
