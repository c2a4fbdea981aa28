"""The JAX trainer: a run from its first evaluation to its summary."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any

from g2rpo.run.description import RunDescription
from g2rpo.run.display import Display
from g2rpo.run.evaluation import Evaluation
from g2rpo.run.failures import resumable
from g2rpo.run.folder import RunFolder
from g2rpo.run.interrupt import Interrupted, StopRequest
from g2rpo.run.metrics import evaluation_metrics
from g2rpo.run.progress import Progress
from g2rpo.run.records import heldout_records, with_tasks
from g2rpo.run.report import draw_plots
from g2rpo.run.scorer import Scorer
from g2rpo.run.shaping import Shaping

from .checkpoint import read_state, restore_optimizer, save_checkpoint
from .device import resolve_device
from .evaluation import evaluate_policy
from .optimizer import AdamW
from .options import refuse_unsupported
from .policy_model import Policy, load_policy
from .prompts import encode_prompts
from .step import training_step
from .update import Trained


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
        description asks for what this engine does not do; if memory or the disk has no more room.
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
    # What can be wrong with model and data is found out before anything is written.
    start = str(checkpoint.path) if checkpoint else description.model.name
    policy = load_policy(start, resolve_device(description.model.device))
    for task in description.data.tasks:
        if examples := heldout_records(description.data, task)[:1]:
            encode_prompts(policy, examples)
    display = display or Display(description.optimization.steps, description.data.tasks)
    with Scorer(description) as scorer:
        if folder is None:
            folder = RunFolder.create(path, description)
        else:
            folder.update_description(description)
        with closing(folder), StopRequest() as stop:
            run = _Run(description, folder, policy, scorer, display, stop)
            if checkpoint:
                run.restore(checkpoint.path)
            with resumable(folder, lambda: run.progress.step):
                return run.to_the_end()


class _Run:
    def __init__(
        self,
        description: RunDescription,
        folder: RunFolder,
        policy: Policy,
        scorer: Scorer,
        display: Display,
        stop: StopRequest,
    ) -> None:
        self.description, self.folder, self.scorer = description, folder, scorer
        self.display, self.stop = display, stop
        self.progress = Progress()
        self.shaping = Shaping(description)
        options = description.optimization
        self.trained = Trained(policy, AdamW.of(options).start(policy.params))
        self.reference: Policy | None = None
        if options.beta:
            self.reference = load_policy(description.model.name, policy.placement)

    def restore(self, checkpoint: Path) -> None:
        """Go back to where a checkpoint was written; the policy is already its own."""
        moments = restore_optimizer(checkpoint, self.trained.moments)
        self.trained = self.trained._replace(moments=moments)
        state = read_state(checkpoint)
        self.shaping.load_state_dict(state["shaping"])
        self.progress = Progress.from_json(state["progress"])

    def to_the_end(self) -> dict[str, Any]:
        """Train until the last step, evaluate, and write the report."""
        started = time.monotonic() - self.progress.seconds
        self.folder.begin(self.progress.step)
        if self.progress.before is None:
            self.progress.before = self._evaluate("held-out items before training", may_stop=True)
        while self.progress.step < self.description.optimization.steps:
            if self.stop.requested:
                self._save()
                raise Interrupted(self.progress.step, self.folder.path)
            self._one_step()
            self.progress.seconds = time.monotonic() - started
            if self._is_due(self.description.output.save_steps):
                self._save()
        self._save()
        # Nothing is lost by stopping here: the evaluation comes again.
        after = self._evaluate("held-out items after training", may_stop=True)
        self.progress.seconds = time.monotonic() - started
        summary = self._summary(self.progress.before, after)
        self.folder.write_summary(summary)
        if self.description.output.plots:
            with self.folder.writing("plots"):
                draw_plots(self.folder)
        return summary

    def _one_step(self) -> None:
        self.trained, metrics, completions = training_step(
            self.trained,
            self.shaping,
            self.description,
            self.progress,
            self.scorer,
            self.reference,
        )
        step = self.progress.step
        if self._is_due(self.description.output.eval_steps):
            metrics |= evaluation_metrics(self._evaluate(f"held-out items after step {step}"))
        self.folder.log(step, metrics, completions)
        self.display.step(step, metrics)
        if self._is_due(self.description.output.show_completions_steps):
            self.display.completions(step, completions)

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.progress.step % every == 0

    def _evaluate(self, name: str, *, may_stop: bool = False) -> Evaluation:
        data = self.description.data
        with self.display.phase(name, len(data.tasks) * data.eval_items) as advance:

            def report(items: int) -> None:
                advance(items)
                if may_stop and self.stop.requested:
                    raise Interrupted(self.progress.step, self.folder.path)

            return evaluate_policy(
                self.trained.policy, self.description, self.scorer, advance=report
            )

    def _save(self) -> None:
        state = {"progress": self.progress.to_json(), "shaping": self.shaping.state_dict()}
        self.folder.save_checkpoint(
            self.progress.step, lambda path: save_checkpoint(path, *self.trained, state)
        )

    def _summary(self, before: Evaluation, after: Evaluation) -> dict[str, Any]:
        return {
            "before": before.reward,
            "after": after.reward,
            "length_before": before.length,
            "length_after": after.length,
            "steps": self.progress.step,
            "seconds": round(self.progress.seconds, 1),
            "seed": self.description.seed,
            "estimator": self.description.estimator.name,
        }
