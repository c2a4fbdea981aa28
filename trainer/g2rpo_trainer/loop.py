"""A run, from its first evaluation to its summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from g2rpo_trainer.advantages import Shaping, shaping_options
from g2rpo_trainer.answers import Evaluation
from g2rpo_trainer.checkpoint import (
    export_merged,
    restore_checkpoint,
    save_checkpoint,
    staged_shards,
)
from g2rpo_trainer.config import TrainConfig
from g2rpo_trainer.data import Source, open_run, skipped_text
from g2rpo_trainer.environment import environment
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.evaluation import Evaluator
from g2rpo_trainer.files import writing
from g2rpo_trainer.interruption import Interrupted, StopRequest, resumable
from g2rpo_trainer.kept_samples import KeptSamples
from g2rpo_trainer.progress import Progress
from g2rpo_trainer.report.display import Display
from g2rpo_trainer.report.plots import draw_plots
from g2rpo_trainer.report.trackers import Trackers, require_trackers
from g2rpo_trainer.run_folder import RunFolder
from g2rpo_trainer.scoring import Scorer, unused_rewards

from .device import model_on, resolve_device, run_kernels
from .distributed import Ranks, join_ranks
from .model.adapting import trained_share
from .model.loading import load_run_policy, with_block_masks
from .model.policy_model import Policy, Shortcuts
from .optimizer import make_optimizer
from .prompts.ahead import PromptReader
from .rollouts import Collector
from .shortcuts import choose_shortcuts, with_compiled_decoding
from .step import StepResult, training_step
from .update import Learner
from .vllm import open_sampler

# Seconds: a launcher passes on the signal that its processes have got from the terminal already.
_ECHO = 2.0


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    display: Display | None = None,
    source: Source | None = None,
) -> dict[str, Any]:
    """Train a policy as configured, and return the summary.

    Parameters
    ----------
    config : TrainConfig
        Configuration of the run; ``output.dir`` is its folder.
    resume : bool
        Continue from the newest checkpoint in the folder.
    display : Display, optional
        Shows the progress.
    source : Source, optional
        Source of the records, if :func:`g2rpo_trainer.data.open_run` has opened it already.

    Returns
    -------
    dict
        The content of ``summary.json``: held-out reward and length per task before and after,
        steps, seconds, seed and estimator.

    Raises
    ------
    RunError
        If the folder already holds a run, or none to resume, or the device is missing; if memory
        or the disk is full.
    Interrupted
        After Ctrl-C or SIGTERM, once the step is finished and saved.

    Notes
    -----
    ``g2rpo train`` is this function with :func:`g2rpo_trainer.config.load_config` before it.
    :func:`g2rpo_trainer.evaluate` evaluates what it leaves, by the path of a checkpoint.
    """
    with join_ranks() as ranks, run_kernels(config.model), ExitStack() as at_end:
        run = _Run(config, source, ranks, at_end, resume=resume, display=display)
        echo = _ECHO if ranks.size > 1 else 0.0
        with StopRequest(echo) as run.stop, resumable(run.folder, lambda: run.progress.step):
            return run.to_the_end()


class _Run:
    """A run with its policy, what trains it, and its folder.

    Everything that can be wrong with data or model is found before the folder is written.
    """

    stop: StopRequest

    def __init__(
        self,
        config: TrainConfig,
        source: Source | None,
        ranks: Ranks,
        at_end: ExitStack,
        *,
        resume: bool,
        display: Display | None,
    ) -> None:
        self.ranks = ranks
        self.at_end = at_end
        path = Path(config.output.dir)
        with ranks.raise_on_all_ranks():
            if not resume:
                RunFolder.refuse_existing(path)
            folder = RunFolder.open(path) if resume else None
            damaged: list[str] = []
            if folder and ranks.is_main:
                at_end.enter_context(RunFolder.locked(path))
                damaged = folder.checkpoints.set_damaged_aside()
            require_trackers(config.output.trackers)
            self.config, self.source = config, open_run(config, source)
        with ranks.raise_on_all_ranks():  # rank 0 has renamed what is damaged
            checkpoint = folder.checkpoints.latest() if folder else None
        self.display = display or self._own_display()
        for text in damaged:
            self.display.message(text)
        for text in unused_rewards(config.rewards.functions, self.source):
            self.display.warn(text)
        self.progress = Progress()
        self._load(checkpoint.path if checkpoint else None)
        # Records that other runs of this process skipped are not skipped by this one.
        self.source.restore_skipped(self.progress.skipped_records)
        with ranks.raise_on_all_ranks():
            self._put_together()
            self.folder = self._own_folder(folder)
        self.trackers: Trackers | None = None

    def _load(self, checkpoint: Path | None) -> None:
        """Load the policy and what trains it, from the start or from a checkpoint."""
        config, options = self.config, self.config.optimization
        start = str(checkpoint) if checkpoint else config.model.name
        policy = load_run_policy(config, start, ranks=self.ranks)
        self.policy = with_block_masks(policy, config.model)
        if shown := trained_share(self.policy.model):
            self.display.message(shown)
        self.shaping = Shaping(shaping_options(config, self.source.tasks))
        self.optimizer = make_optimizer(self.policy, options)
        self.sampler = self.at_end.enter_context(open_sampler(config, self.policy, self.ranks))
        self.reference: Policy | None = None
        if options.beta:
            # The reference of an adapter is its base.
            self.reference = self.policy
            if not self.policy.has_adapter:
                reference = load_run_policy(config, ranks=self.ranks)
                self.reference = with_block_masks(reference, config.model)
        if checkpoint:
            with self.ranks.raise_on_all_ranks():
                state = restore_checkpoint(checkpoint, self.policy, self.optimizer)
                _require_same_tasks(state["tasks"], self.source.tasks)
                self.shaping.load_state_dict(state["shaping"])
                self.policy = replace(self.policy, shortcuts=Shortcuts(**state["shortcuts"]))
                self.progress = Progress.from_json(state["progress"])
        else:
            self.policy = choose_shortcuts(
                self.policy, config.rollout.shared_prompts, seed=config.seed, ranks=self.ranks
            )
        if config.rollout.compile:
            self.policy = with_compiled_decoding(self.policy, seed=config.seed, ranks=self.ranks)
        if self.reference is not None:
            self.reference = replace(self.reference, shortcuts=self.policy.shortcuts)

    def _put_together(self) -> None:
        """Make what collects rollouts, learns from them and evaluates."""
        config, source, ranks = self.config, self.source, self.ranks
        rollout, optimization = config.rollout, config.optimization
        scorer = self.at_end.enter_context(Scorer(config.rewards, config.data, source))
        self.evaluator = Evaluator(source, scorer, config.data, rollout, self.sampler, ranks)
        self.collector = Collector(
            self.policy,
            self.sampler,
            scorer,
            source,
            rollout,
            seed=config.seed,
            is_truncated_absent=optimization.mask_truncated_completions == "all",
            ranks=ranks,
            reader=PromptReader(self.policy, source, skips_broken=config.data.skip_broken),
        )
        self.learner = Learner(
            self.policy, self.optimizer, self.shaping, optimization, rollout, self.reference, ranks
        )

    def _own_display(self) -> Display:
        console = None if self.ranks.is_main else Console(quiet=True)
        steps, tasks = self.config.optimization.steps, self.source.tasks
        bounds = self.config.entropy.kept_bounds(tasks)
        return Display(steps, tasks, console=console, bounds=bounds)

    def _own_folder(self, folder: RunFolder | None) -> RunFolder:
        """Return the folder, which rank 0 creates or brings up to date."""
        path = self.config.output.dir
        if not self.ranks.is_main:
            return RunFolder(Path(path), self.config)
        if folder is None:
            self.at_end.enter_context(RunFolder.locked(path))
            return RunFolder.create(path, self.config)
        folder.update_config(self.config)
        return folder

    def to_the_end(self) -> dict[str, Any]:
        """Evaluate, take all steps, evaluate again, and write the summary."""
        progress, steps = self.progress, self.config.optimization.steps
        self._started = time.monotonic() - progress.seconds
        self._on_main(self._begin_logs)
        if progress.before is None:
            progress.before = self._evaluate("held-out items before training", keep="before")
        if progress.step < steps:
            while progress.step < steps:
                self._stop_if_asked()
                output = self.config.output
                result = training_step(self.collector, self.learner, output, progress)
                self._end_step(result)
            self._save()
        # Nothing is lost by stopping here: a resumed run evaluates again.
        after = self._evaluate("held-out items after training", keep="after")
        self._note_time()
        summary = self._summary(progress.before, after)
        self._on_main(lambda: self._finish(summary))
        if skipped := skipped_text(self.source.summary()):
            self.display.message(skipped)
        return summary

    def _begin_logs(self) -> None:
        self.folder.begin(self.progress.step)
        here = environment(self.policy.device, self.ranks.size)
        self.folder.note_environment(self.progress.step, here)
        if self.progress.step:
            self.display.recall(self.folder.read_metrics())
        self.trackers = Trackers(self.folder, self.progress.step)
        self.at_end.enter_context(closing(self.trackers))

    def _end_step(self, result: StepResult) -> None:
        """Evaluate if due; log and show the step; save if due."""
        step, output, metrics = self.progress.step, self.config.output, result.metrics
        if self._is_due(output.eval_steps):
            metrics = metrics | self._evaluate(f"held-out items after step {step}").metrics()
        if self.config.data.skip_broken:
            # Each rank has read records of its own.
            self.source.restore_skipped(*self.ranks.gather_objects(self.source.skipped_state()))
            metrics = metrics | {"data/skipped": float(self.source.skipped)}
        self._on_main(lambda: self._log(step, metrics, result.completions))
        self.display.step(step, metrics)
        if self._is_due(output.show_completions_steps):
            self.display.completions(step, result.completions)
        self._note_time()
        if self._is_due(output.save_steps):
            self._save()

    def _log(self, step: int, metrics: dict[str, float], completions: list[dict[str, Any]]) -> None:
        self.folder.log(step, metrics, completions)
        if self.trackers:
            self.trackers.log(step, metrics)

    def _evaluate(self, name: str, *, keep: str = "") -> Evaluation:
        """Evaluate; before and after the run keep some answers, and let a signal stop at once."""
        kept = KeptSamples(self.source.tasks)
        items = len(self.source.tasks) * self.config.data.eval_items
        with self.display.phase(name, items) as advance:

            def report(items: int) -> None:
                advance(items)
                if keep and self._is_asked_to_stop():
                    raise Interrupted(self.progress.step, self.folder.path)

            on_samples = kept.add if keep else None
            evaluation = self.evaluator.evaluate(self.policy, advance=report, on_samples=on_samples)
        if keep:
            self._on_main(lambda: self._keep(kept, keep))
        return evaluation

    def _keep(self, kept: KeptSamples, when: str) -> None:
        if when == "before":  # the items of later evaluations are the same
            for task, items in kept.items.items():
                kept.add_images(task, self.source.held_out_records(task, items))
        self.folder.write_samples(when, kept.rows())

    def _save(self) -> None:
        """Write a checkpoint, unless there is one of this step."""
        path = self.folder.checkpoints.path_of(self.progress.step)
        if self.ranks.any(self.ranks.is_main and path.exists()):
            return
        self.progress.skipped_records = self.source.skipped_state()
        state = {
            "progress": self.progress.to_json(),
            "shaping": self.shaping.state_dict(),
            "shortcuts": asdict(self.policy.shortcuts),
            "tasks": list(self.source.tasks),
        }
        with staged_shards(self.folder.path, self.policy, self.optimizer, self.ranks) as staged:

            def write(path: Path) -> None:
                save_checkpoint(path, self.policy, self.optimizer, state, staged)

            self._on_main(lambda: self.folder.save_checkpoint(self.progress.step, write))

    def _stop_if_asked(self) -> None:
        """Save and raise `Interrupted` after a signal."""
        if self._is_asked_to_stop():
            self._save()
            raise Interrupted(self.progress.step, self.folder.path)

    def _finish(self, summary: dict[str, Any]) -> None:
        """Write the merged model of an adapter, the summary and the plots."""
        if self.policy.has_adapter:
            with writing(self.folder.path, "the merged model"):
                newest = self.folder.checkpoints.all()[-1].path
                # The merged model has the dtype of the run, though it is made on the CPU.
                model = model_on(self.config.model, resolve_device(self.config.model.device))
                export_merged(newest, self.folder.path / "final", model)
        self.folder.write_summary(summary)
        if self.config.output.plots:
            with writing(self.folder.path, "plots"):
                draw_plots(self.folder, self.source.tasks)

    def _summary(self, before: Evaluation, after: Evaluation) -> dict[str, Any]:
        return {
            "before": before.reward,
            "after": after.reward,
            "interval_before": before.interval,
            "interval_after": after.interval,
            "interval_change": after.change_since(before),
            "items": after.items,
            "length_before": before.length,
            "length_after": after.length,
            "steps": self.progress.step,
            "seconds": round(self.progress.seconds, 1),
            "seed": self.config.seed,
            "estimator": self.config.estimator.name,
        }

    def _on_main(self, action: Callable[[], object]) -> None:
        """Run an action on rank 0; the other ranks wait for it, and fail if it fails."""
        with self.ranks.raise_on_all_ranks():
            if self.ranks.is_main:
                action()

    def _is_asked_to_stop(self) -> bool:
        """Return whether any rank has got a signal; all ranks must ask."""
        return self.ranks.any(self.stop.requested)

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.progress.step % every == 0

    def _note_time(self) -> None:
        self.progress.seconds = time.monotonic() - self._started


def _require_same_tasks(saved: Sequence[str], tasks: Sequence[str]) -> None:
    """Raise `RunError` if the data have other tasks than when the checkpoint was written.

    Labels of tasks in the checkpoint's state are indices.
    """
    if list(saved) != list(tasks):
        raise RunError(
            f"the tasks of the data are {', '.join(tasks)}, but the run has trained "
            f"{', '.join(saved)}; restore the data, or start another run"
        )
