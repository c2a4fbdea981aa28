"""A run from its first evaluation to its summary, with tunix's own loop in the middle."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from g2rpo.run.description import RunDescription
from g2rpo.run.display import Display
from g2rpo.run.evaluation import Evaluation
from g2rpo.run.failures import resumable
from g2rpo.run.folder import RunFolder
from g2rpo.run.interrupt import Interrupted, StopRequest
from g2rpo.run.metrics import evaluation_metrics
from g2rpo.run.records import with_tasks
from g2rpo.run.report import draw_plots
from g2rpo.run.schedule import learning_rate_factor
from g2rpo.run.scorer import Scorer

from .cluster import make_cluster, make_mesh, save_actor
from .evaluation import evaluate_policy
from .options import learner_config, refuse_unsupported
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
    path = description.output.dir
    if not resume:
        RunFolder.refuse_existing(path)
    folder = RunFolder.open(path) if resume else None
    refuse_unsupported(description)
    description = with_tasks(description)
    checkpoint = folder.latest_checkpoint() if folder else None
    # Everything that can be wrong with the model is found out before anything is written.
    mesh = make_mesh(description.model.device)
    policy = load_policy(description.model.name, mesh, description.model.dtype)
    longest = longest_prompt(description, policy.tokenizer)
    start = checkpoint.path if checkpoint else None
    cluster = make_cluster(description, policy, mesh, longest, start)
    display = display or Display(description.optimization.steps, description.data.tasks)
    with Scorer(description) as scorer:
        if folder is None:
            folder = RunFolder.create(path, description)
        else:
            folder.update_description(description)
        with closing(folder), StopRequest() as stop:
            run = _Run(description, folder, cluster, scorer, display, stop)
            if checkpoint:
                run.restore(checkpoint.path)
            with resumable(folder, lambda: run.step):
                return run.to_the_end()


class _Run:
    def __init__(
        self,
        description: RunDescription,
        folder: RunFolder,
        cluster: Any,
        scorer: Scorer,
        display: Display,
        stop: StopRequest,
    ) -> None:
        self.description, self.folder, self.cluster = description, folder, cluster
        self.scorer, self.display, self.stop = scorer, display, stop
        self.step, self.seconds = 0, 0.0
        self.before: Evaluation | None = None
        self._started = time.monotonic()
        self._learning = False

    def restore(self, checkpoint: Path) -> None:
        """Go back to where a checkpoint was written; the cluster is already its own."""
        state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        self.step, self.seconds = state["step"], state["seconds"]
        self.before = None if state["before"] is None else Evaluation(*state["before"])

    def to_the_end(self) -> dict[str, Any]:
        """Train until the last step, evaluate, and write the report."""
        self._started = time.monotonic() - self.seconds
        self.folder.begin(self.step)
        if self.before is None:
            self.before = self._evaluate("held-out items before training")
        if self.step < self.description.optimization.steps:
            self._train()
        # Nothing is lost by stopping here: the evaluation comes again.
        after = self._evaluate("held-out items after training")
        self.seconds = time.monotonic() - self._started
        summary = self._summary(self.before, after)
        self.folder.write_summary(summary)
        if self.description.output.plots:
            with self.folder.writing("plots"):
                draw_plots(self.folder)
        return summary

    def _train(self) -> None:
        self._prompts = Prompts(self.description, self.step)
        self._scores = Scores(self.scorer, self._prompts)
        learner = SteppingLearner(
            self._after_step,
            self.cluster,
            learner_config(self.description),
            self._scores.functions(),
        )
        self._learning = True
        learner.train(self._prompts)
        self._learning = False

    def _after_step(self, step: int, metrics: dict[str, float], columns: Any, example: Any) -> None:
        options, output = self.description.optimization, self.description.output
        self.step, self.seconds = step, time.monotonic() - self._started
        metrics["learning_rate"] = options.learning_rate * learning_rate_factor(options, step - 1)
        if self._is_due(output.eval_steps):
            metrics |= evaluation_metrics(self._evaluate(f"held-out items after step {step}"))
        table = self._table(columns, example)
        self.folder.log(step, metrics, table)
        self.display.step(step, metrics)
        if self._is_due(output.show_completions_steps):
            self.display.completions(step, table)
        if self._is_due(output.save_steps) or step == options.steps or self.stop.requested:
            self._save()
        if self.stop.requested and step < options.steps:
            raise Interrupted(step, self.folder.path)

    def _table(self, columns: Any, example: Any) -> list[dict[str, Any]]:
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

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _evaluate(self, name: str) -> Evaluation:
        data = self.description.data
        with self.display.phase(name, len(data.tasks) * data.eval_items) as advance:

            def report(items: int) -> None:
                advance(items)
                if self.stop.requested and not self._learning:
                    raise Interrupted(self.step, self.folder.path)

            return evaluate_policy(self.cluster, self.description, self.scorer, advance=report)

    def _save(self) -> None:
        state = {"step": self.step, "seconds": self.seconds, "before": self.before}

        def write(path: Path) -> None:
            save_actor(path, self.cluster)
            (path / _STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")

        self.folder.save_checkpoint(self.step, write)

    def _summary(self, before: Evaluation, after: Evaluation) -> dict[str, Any]:
        return {
            "before": before.reward,
            "after": after.reward,
            "length_before": before.length,
            "length_after": after.length,
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "seed": self.description.seed,
            "estimator": self.description.estimator.name,
        }
