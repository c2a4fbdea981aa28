"""The reference trainer: a run from its first evaluation to its summary."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from g2rpo.run.description import RunDescription
from g2rpo.run.display import Display
from g2rpo.run.evaluation import Evaluation
from g2rpo.run.failures import resumable
from g2rpo.run.folder import RunFolder
from g2rpo.run.interrupt import Interrupted, StopRequest
from g2rpo.run.metrics import evaluation_metrics
from g2rpo.run.progress import Progress
from g2rpo.run.records import with_tasks
from g2rpo.run.report import draw_plots
from g2rpo.run.scorer import Scorer
from g2rpo.run.shaping import Shaping

from .distributed.processes import Processes, joined
from .evaluation import evaluate_policy
from .learning.optimizer import make_optimizer
from .model.checkpoint import gather_whole, restore_checkpoint, save_checkpoint
from .model.export import export_merged
from .model.freezing import trained_share
from .model.loading import load_described
from .model.policy_model import Policy
from .rollout.engine import open_sampler
from .step import training_step

# A launcher passes on the signal that its processes have got from the terminal already.
_ECHO = 2.0


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
        If the folder already holds a run, or none to resume, or the device is missing; if memory or
        the disk has no more room.
    Interrupted
        After Ctrl-C or SIGTERM, once the step is finished and saved.
    """
    with joined() as processes:
        return _train(description, resume, display, processes)


def _train(
    description: RunDescription, resume: bool, display: Display | None, processes: Processes
) -> dict[str, Any]:
    path = description.output.dir
    with processes.together():
        if not resume:
            RunFolder.refuse_existing(path)
        folder = RunFolder.open(path) if resume else None
        description = with_tasks(description)
        checkpoint = folder.latest_checkpoint() if folder else None
    # Everything that can be wrong with the model is found out before anything is written.
    start = str(checkpoint.path) if checkpoint else description.model.name
    policy = load_described(description, start)
    console = None if processes.is_main else Console(quiet=True)
    steps, tasks = description.optimization.steps, description.data.tasks
    display = display or Display(steps, tasks, console=console)
    with ExitStack() as stack:
        with processes.together():
            scorer = stack.enter_context(Scorer(description))
            folder = _own_folder(folder, description, processes)
        if shown := trained_share(policy.model):
            display.message(shown)
        stack.enter_context(closing(folder))
        stop = stack.enter_context(StopRequest(echo=_ECHO if processes.size > 1 else 0.0))
        run = _Run(description, folder, policy, scorer, display, stop)
        if checkpoint:
            with processes.together():
                run.restore(checkpoint.path)
        with resumable(folder, lambda: run.progress.step):
            return run.to_the_end()


def _own_folder(
    folder: RunFolder | None, description: RunDescription, processes: Processes
) -> RunFolder:
    """Return the run's folder, which the first process makes or brings up to date."""
    path = description.output.dir
    if not processes.is_main:
        return RunFolder(Path(path), description)
    if folder is None:
        return RunFolder.create(path, description)
    folder.update_description(description)
    return folder


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
        self.description, self.folder, self.policy = description, folder, policy
        self.scorer, self.display, self.stop = scorer, display, stop
        self.progress = Progress()
        self.shaping = Shaping(description)
        options = description.optimization
        self.processes = Processes.current()
        self.optimizer = make_optimizer(policy, options)
        with self.processes.together():
            self.sampler = open_sampler(description, policy)
        self.reference: Policy | None = None
        if options.beta:
            # Of an adapter the base is the reference. What the one learns about sharing prompts
            # holds for the other.
            loaded = policy if policy.has_adapter else load_described(description)
            self.reference = replace(loaded, trials=policy.trials)

    def restore(self, checkpoint: Path) -> None:
        """Go back to where a checkpoint was written; the policy is already its own."""
        state = restore_checkpoint(checkpoint, self.policy, self.optimizer)
        self.shaping.load_state_dict(state["shaping"])
        self.policy.trials.load_state_dict(state["trials"])
        self.progress = Progress.from_json(state["progress"])

    def to_the_end(self) -> dict[str, Any]:
        """Train until the last step, evaluate, and write the report."""
        started = time.monotonic() - self.progress.seconds
        self._on_main(lambda: self.folder.begin(self.progress.step))
        if self.progress.before is None:
            self.progress.before = self._evaluate("held-out items before training", may_stop=True)
        while self.progress.step < self.description.optimization.steps:
            if self._is_asked_to_stop():
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
        self._on_main(lambda: self._report(summary))
        return summary

    def _report(self, summary: dict[str, Any]) -> None:
        if self.policy.has_adapter:
            with self.folder.writing("the merged model"):
                newest = self.folder.checkpoints()[-1].path
                export_merged(newest, self.folder.path / "final", self.description.model)
        self.folder.write_summary(summary)
        if self.description.output.plots:
            with self.folder.writing("plots"):
                draw_plots(self.folder)

    def _one_step(self) -> None:
        description, progress = self.description, self.progress
        metrics, completions = training_step(
            self.policy,
            self.optimizer,
            self.shaping,
            description,
            progress,
            self.scorer,
            self.reference,
            self.sampler,
        )
        step = progress.step
        if self._is_due(description.output.eval_steps):
            evaluation = self._evaluate(f"held-out items after step {step}")
            metrics |= evaluation_metrics(evaluation)
        self._on_main(lambda: self.folder.log(step, metrics, completions))
        self.display.step(step, metrics)
        if self._is_due(description.output.show_completions_steps):
            self.display.completions(step, completions)

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.progress.step % every == 0

    def _evaluate(self, name: str, *, may_stop: bool = False) -> Evaluation:
        data = self.description.data
        with self.display.phase(name, len(data.tasks) * data.eval_items) as advance:

            def report(items: int) -> None:
                advance(items)
                if may_stop and self._is_asked_to_stop():
                    raise Interrupted(self.progress.step, self.folder.path)

            return evaluate_policy(self.policy, self.description, self.scorer, advance=report)

    def _save(self) -> None:
        state = {
            "progress": self.progress.to_json(),
            "shaping": self.shaping.state_dict(),
            "trials": self.policy.trials.state_dict(),
        }
        whole = gather_whole(self.policy, self.optimizer)

        def write(path: Path) -> None:
            save_checkpoint(path, self.policy, self.optimizer, state, whole)

        self._on_main(lambda: self.folder.save_checkpoint(self.progress.step, write))

    def _on_main(self, action: Callable[[], object]) -> None:
        """Let the first process do what one does for all; the others wait, and fail if it fails."""
        with self.processes.together():
            if self.processes.is_main:
                action()

    def _is_asked_to_stop(self) -> bool:
        """Tell whether any process has got a signal, all processes alike."""
        return self.processes.any(self.stop.requested)

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
