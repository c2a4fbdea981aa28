"""The reference trainer: how a policy in PyTorch is loaded, learns, is evaluated and is saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from g2rpo_trainer.config import TrainConfig
from g2rpo_trainer.data import Source
from g2rpo_trainer.run.display import Display
from g2rpo_trainer.run.evaluation import Evaluation
from g2rpo_trainer.run.loop import Completions, Metrics, Run
from g2rpo_trainer.run.progress import Progress
from g2rpo_trainer.run.shaping import Shaping

from .distributed.processes import joined
from .evaluation import evaluate_policy
from .inputs.prompts import prompt_fault
from .learning.optimizer import make_optimizer
from .model.checkpoint import gather_whole, restore_checkpoint, save_checkpoint
from .model.export import export_merged
from .model.freezing import trained_share
from .model.loading import load_described
from .model.policy_model import Policy
from .step import training_step
from .vllm import open_sampler


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    display: Display | None = None,
    source: Source | None = None,
) -> dict[str, Any]:
    """Train a policy as described, and return the summary.

    Parameters
    ----------
    config : TrainConfig
        The run; ``output.dir`` is its folder.
    resume : bool
        Go on from the newest checkpoint in the folder.
    display : Display, optional
        Shows the progress.
    source : Source, optional
        Of the records, if :func:`g2rpo_trainer.data.open_run` has opened it already.

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
        return _Run(config, processes, source).train(resume=resume, display=display)


class _Run(Run):
    def load(self, checkpoint: Path | None) -> None:
        config, options = self.config, self.config.optimization
        start = str(checkpoint) if checkpoint else config.model.name
        self.policy = load_described(config, start)
        if config.data.skip_broken:
            self.source.refuse(partial(prompt_fault, self.policy))
        if shown := trained_share(self.policy.model):
            self.display.message(shown)
        self.shaping = Shaping(config)
        self.optimizer = make_optimizer(self.policy, options)
        self.sampler = self.at_end.enter_context(open_sampler(config, self.policy))
        self.reference: Policy | None = None
        if options.beta:
            # Of an adapter the base is the reference. What the one learns about sharing prompts
            # holds for the other.
            loaded = self.policy if self.policy.has_adapter else load_described(config)
            self.reference = replace(loaded, trials=self.policy.trials)
        if checkpoint:
            with self.processes.together():
                self._restore(checkpoint)

    def _restore(self, checkpoint: Path) -> None:
        """Go back to where a checkpoint was written; the policy is already its own."""
        state = restore_checkpoint(checkpoint, self.policy, self.optimizer)
        self.shaping.load_state_dict(state["shaping"])
        self.policy.trials.load_state_dict(state["trials"])
        self.progress = Progress.from_json(state["progress"])

    def take_step(self) -> tuple[Metrics, Completions]:
        return training_step(
            self.policy,
            self.optimizer,
            self.shaping,
            self.config,
            self.source,
            self.progress,
            self.scorer,
            self.reference,
            self.sampler,
        )

    def evaluate(self, advance: Callable[[int], None]) -> Evaluation:
        return evaluate_policy(self.policy, self.config, self.source, self.scorer, advance=advance)

    def checkpoint(self) -> Callable[[Path], None]:
        state = {
            "progress": self.progress.to_json(),
            "shaping": self.shaping.state_dict(),
            "trials": self.policy.trials.state_dict(),
        }
        whole = gather_whole(self.policy, self.optimizer)
        return lambda path: save_checkpoint(path, self.policy, self.optimizer, state, whole)

    def finish(self) -> None:
        if self.policy.has_adapter:
            with self.folder.writing("the merged model"):
                newest = self.folder.checkpoints()[-1].path
                export_merged(newest, self.folder.path / "final", self.config.model)
