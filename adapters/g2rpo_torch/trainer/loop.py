"""The reference trainer: a run from its first evaluation to its summary."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from g2rpo.run.description import RunDescription
from g2rpo.run.display import Display
from g2rpo.run.folder import RunFolder
from g2rpo.run.interrupt import Interrupted, StopRequest
from g2rpo.run.records import with_tasks
from g2rpo.run.report import draw_plots

from .checkpoint import read_state, restore_optimizer, save_checkpoint
from .device import resolve_device
from .evaluation import Evaluation, evaluate_policy
from .policy_model import Policy, load_policy
from .shaping import Shaping
from .step import training_step


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
        If the folder already holds a run, or none to resume, or the device is missing.
    Interrupted
        After Ctrl-C or SIGTERM, once the step is finished and saved.
    """
    path = description.output.dir
    if not resume:
        RunFolder.refuse_existing(path)
    description = with_tasks(description)
    checkpoint = RunFolder.open(path).latest_checkpoint() if resume else None
    # Everything that can be wrong with the model is found out before anything is written.
    start = str(checkpoint.path) if checkpoint else description.model.name
    policy = _load(start, description)
    folder = RunFolder.open(path) if resume else RunFolder.create(path, description)
    if resume:
        folder.update_description(description)
    display = display or Display(description.optimization.steps, description.data.tasks)
    try:
        with StopRequest() as stop:
            run = _Run(description, folder, policy, display, stop)
            if checkpoint:
                run.restore(checkpoint.path)
            return run.to_the_end()
    finally:
        folder.close()


def _load(name: str, description: RunDescription) -> Policy:
    device = resolve_device(description.model.device)
    return load_policy(
        name,
        device=device,
        dtype=description.model.dtype,
        shared_prompts=description.rollout.shared_prompts,
    )


@dataclass
class _Progress:
    """What a run carries from step to step beside the weights, all of it in the checkpoint."""

    step: int = 0
    seconds: float = 0.0
    before: Evaluation | None = None


class _Run:
    def __init__(
        self,
        description: RunDescription,
        folder: RunFolder,
        policy: Policy,
        display: Display,
        stop: StopRequest,
    ) -> None:
        self.description, self.folder, self.policy = description, folder, policy
        self.display, self.stop = display, stop
        self.progress = _Progress()
        self.shaping = Shaping(description)
        options = description.optimization
        self.optimizer = torch.optim.AdamW(
            policy.model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        self.reference: Policy | None = None
        if options.beta:
            loaded = _load(description.model.name, description)
            # What the one learns about sharing prompts holds for the other.
            self.reference = replace(loaded, sharing=policy.sharing)

    def restore(self, checkpoint: Path) -> None:
        """Go back to where a checkpoint was written; the policy is already its own."""
        restore_optimizer(checkpoint, self.policy, self.optimizer)
        state = read_state(checkpoint)
        self.shaping.load_state_dict(state["shaping"])
        before = Evaluation(*state["before"])
        self.progress = _Progress(state["step"], state["seconds"], before)

    def to_the_end(self) -> dict[str, Any]:
        """Train until the last step, evaluate, and write the report."""
        started = time.monotonic() - self.progress.seconds
        self.folder.truncate_metrics(self.progress.step)
        if self.progress.before is None:
            self.progress.before = self._evaluate("held-out items before training")
        while self.progress.step < self.description.optimization.steps:
            if self.stop.requested:
                self._save()
                raise Interrupted(self.progress.step, self.folder.path)
            self._one_step()
            self.progress.seconds = time.monotonic() - started
            if self._is_due(self.description.output.save_steps):
                self._save()
        after = self._evaluate("held-out items after training")
        self.progress.seconds = time.monotonic() - started
        self._save()
        summary = self._summary(self.progress.before, after)
        self.folder.write_summary(summary)
        draw_plots(self.folder)
        return summary

    def _one_step(self) -> None:
        description, step = self.description, self.progress.step
        self._set_learning_rate(step)
        metrics = training_step(
            self.policy, self.optimizer, self.shaping, description, step, self.reference
        )
        self.progress.step = step = step + 1
        if description.output.eval_steps and self._is_due(description.output.eval_steps):
            evaluation = self._evaluate(f"held-out items after step {step}")
            rewards = evaluation.reward.items()
            metrics |= {f"eval_reward/{task}": reward for task, reward in rewards}
        self.folder.log(step, metrics)
        self.display.step(step, metrics)

    def _set_learning_rate(self, step: int) -> None:
        options = self.description.optimization
        factor = min(1.0, (step + 1) / (options.warmup_steps + 1))
        if options.schedule == "linear":
            factor *= 1 - step / options.steps
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * factor

    def _is_due(self, every: int) -> bool:
        return self.progress.step % every == 0

    def _evaluate(self, name: str) -> Evaluation:
        data = self.description.data
        with self.display.phase(name, len(data.tasks) * data.eval_items) as advance:
            return evaluate_policy(self.policy, self.description, advance=advance)

    def _save(self) -> None:
        state = {
            "step": self.progress.step,
            "seconds": self.progress.seconds,
            "before": self.progress.before,
            "shaping": self.shaping.state_dict(),
        }
        self.folder.save_checkpoint(
            self.progress.step,
            lambda path: save_checkpoint(path, self.policy, self.optimizer, state),
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
