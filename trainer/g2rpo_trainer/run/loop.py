"""A run from its first evaluation to its summary.

A trainer is a subclass of :class:`Run`, which says how a policy is loaded, takes a step, is
evaluated and is saved. When each of these happens, and what is left on the disk, stands here.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from rich.console import Console

from g2rpo_trainer.config import TrainConfig
from g2rpo_trainer.data import Source, open_run, skipped_text
from g2rpo_trainer.run.display import Display
from g2rpo_trainer.run.evaluation import Evaluation
from g2rpo_trainer.run.failures import resumable
from g2rpo_trainer.run.folder import RunFolder
from g2rpo_trainer.run.interrupt import Interrupted, StopRequest
from g2rpo_trainer.run.metrics import evaluation_metrics
from g2rpo_trainer.run.plots import draw_plots
from g2rpo_trainer.run.processes import OneProcess, Processes
from g2rpo_trainer.run.progress import Progress
from g2rpo_trainer.scoring import Scorer

# A launcher passes on the signal that its processes have got from the terminal already.
_ECHO = 2.0

Metrics = dict[str, float]
Completions = list[dict[str, Any]]


class Run(ABC):
    """One run of a trainer.

    Parameters
    ----------
    config : TrainConfig
        The run; ``output.dir`` is its folder.
    processes : Processes
        Those that train together, by default this one alone.
    source : Source, optional
        Of the records, if :func:`g2rpo_trainer.data.open_run` has opened it already.

    Attributes
    ----------
    config : TrainConfig
        Its tasks are named when :meth:`load` is called.
    source : Source
        Of the records; there when :meth:`load` is called.
    progress : Progress
        Where the run stands; a step moves it on, and :meth:`load` takes it from a checkpoint.
    display : Display
        Shows the progress; there when :meth:`load` is called.
    scorer : Scorer
        Says what responses are worth; there after :meth:`load`, as is the folder.
    folder : RunFolder
        What the run leaves behind.
    at_end : ExitStack
        What is closed when the run ends, however it ends; :meth:`load` may add to it.
    """

    source: Source
    display: Display
    scorer: Scorer
    folder: RunFolder

    def __init__(
        self,
        config: TrainConfig,
        processes: Processes | None = None,
        source: Source | None = None,
    ) -> None:
        self.config = config
        self._opened = source
        self.processes: Processes = processes or OneProcess()
        self.progress = Progress()
        self.at_end = ExitStack()

    @abstractmethod
    def load(self, checkpoint: Path | None) -> None:
        """Load the policy and what trains it; all of it stands in a checkpoint to go on from.

        What can be wrong with the model is to be found out here, before anything is written.
        """

    @abstractmethod
    def take_step(self) -> tuple[Metrics, Completions]:
        """Sample, score and learn once; return what there is to report, and all responses."""

    @abstractmethod
    def evaluate(self, advance: Callable[[int], None]) -> Evaluation:
        """Evaluate the policy on the held-out items; ``advance`` is told how many are done."""

    @abstractmethod
    def checkpoint(self) -> Callable[[Path], None]:
        """Return what fills a checkpoint's folder; of several processes the first calls it."""

    @abstractmethod
    def finish(self) -> None:
        """Export the trained model; of several processes the first does."""

    def train(self, *, resume: bool = False, display: Display | None = None) -> dict[str, Any]:
        """Begin, or go on from the newest checkpoint, and train to the end.

        Parameters
        ----------
        resume : bool
            Go on with the run in the folder.
        display : Display, optional
            Shows the progress.

        Returns
        -------
        dict
            What ``summary.json`` holds.

        Raises
        ------
        RunError
            If the folder already holds a run, or none to resume; if memory or the disk has no more
            room.
        Interrupted
            After Ctrl-C or SIGTERM, once the step is finished and saved.
        """
        path = self.config.output.dir
        with self.processes.together():
            if not resume:
                RunFolder.refuse_existing(path)
            folder = RunFolder.open(path) if resume else None
            self.config, self.source = open_run(self.config, self._opened)
            checkpoint = folder.latest_checkpoint() if folder else None
        self.display = display or self._own_display()
        with self.at_end as at_end:
            self.load(checkpoint.path if checkpoint else None)
            # What other runs of this process left out is not this one's.
            self.source.restore_skipped(self.progress.skipped_records)
            with self.processes.together():
                self.scorer = at_end.enter_context(Scorer(self.config, self.source))
                self.folder = self._own_folder(folder)
            at_end.enter_context(closing(self.folder))
            echo = _ECHO if self.processes.size > 1 else 0.0
            self._stop = at_end.enter_context(StopRequest(echo=echo))
            with resumable(self.folder, lambda: self.progress.step):
                return self._to_the_end()

    def _own_display(self) -> Display:
        console = None if self.processes.is_main else Console(quiet=True)
        steps = self.config.optimization.steps
        return Display(steps, self.config.data.tasks, console=console)

    def _own_folder(self, folder: RunFolder | None) -> RunFolder:
        """Return the run's folder, which the first process makes or brings up to date."""
        path = self.config.output.dir
        if not self.processes.is_main:
            return RunFolder(Path(path), self.config)
        if folder is None:
            return RunFolder.create(path, self.config)
        folder.update_config(self.config)
        return folder

    def _to_the_end(self) -> dict[str, Any]:
        self._started = time.monotonic() - self.progress.seconds
        self._on_main(lambda: self.folder.begin(self.progress.step))
        if self.progress.before is None:
            self.progress.before = self._evaluate("held-out items before training", may_stop=True)
        if self.progress.step < self.config.optimization.steps:
            self.take_steps()
        # Nothing is lost by stopping here: the evaluation comes again.
        after = self._evaluate("held-out items after training", may_stop=True)
        self._note_time()
        summary = self._summary(self.progress.before, after)
        self._on_main(lambda: self._report(summary))
        if skipped := skipped_text(self.source.summary()):
            self.display.message(skipped)
        return summary

    def take_steps(self) -> None:
        """Take all steps that remain."""
        while self.progress.step < self.config.optimization.steps:
            self.stop_if_asked()
            self.end_step(*self.take_step())
        self.save()

    def stop_if_asked(self) -> None:
        """Save and raise `Interrupted` if a signal has come."""
        if self._is_asked_to_stop():
            self.save()
            raise Interrupted(self.progress.step, self.folder.path)

    def end_step(self, metrics: Metrics, completions: Completions) -> None:
        """Evaluate where that is due; log and show the step; save where that is due."""
        step, output = self.progress.step, self.config.output
        if self._is_due(output.eval_steps):
            evaluation = self._evaluate(f"held-out items after step {step}")
            metrics = metrics | evaluation_metrics(evaluation)
        if self.config.data.skip_broken:
            metrics = metrics | {"data/skipped": float(self.source.skipped)}
        self._on_main(lambda: self.folder.log(step, metrics, completions))
        self.display.step(step, metrics)
        if self._is_due(output.show_completions_steps):
            self.display.completions(step, completions)
        self._note_time()
        if self._is_due(output.save_steps):
            self.save()

    def save(self) -> None:
        """Write a checkpoint, unless there is one of this step."""
        self.progress.skipped_records = self.source.skipped_state()
        write = self.checkpoint()
        self._on_main(lambda: self.folder.save_checkpoint(self.progress.step, write))

    def _evaluate(self, name: str, *, may_stop: bool = False) -> Evaluation:
        data = self.config.data
        with self.display.phase(name, len(data.tasks) * data.eval_items) as advance:

            def report(items: int) -> None:
                advance(items)
                if may_stop and self._is_asked_to_stop():
                    raise Interrupted(self.progress.step, self.folder.path)

            return self.evaluate(report)

    def _report(self, summary: dict[str, Any]) -> None:
        self.finish()
        self.folder.write_summary(summary)
        if self.config.output.plots:
            with self.folder.writing("plots"):
                draw_plots(self.folder)

    def _summary(self, before: Evaluation, after: Evaluation) -> dict[str, Any]:
        return {
            "before": before.reward,
            "after": after.reward,
            "interval_before": before.interval,
            "interval_after": after.interval,
            "items": after.items,
            "length_before": before.length,
            "length_after": after.length,
            "steps": self.progress.step,
            "seconds": round(self.progress.seconds, 1),
            "seed": self.config.seed,
            "estimator": self.config.estimator.name,
        }

    def _on_main(self, action: Callable[[], object]) -> None:
        """Let the first process do what one does for all; the others wait, and fail if it fails."""
        with self.processes.together():
            if self.processes.is_main:
                action()

    def _is_asked_to_stop(self) -> bool:
        """Tell whether any process has got a signal, all processes alike."""
        return self.processes.any(self._stop.requested)

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.progress.step % every == 0

    def _note_time(self) -> None:
        self.progress.seconds = time.monotonic() - self._started
