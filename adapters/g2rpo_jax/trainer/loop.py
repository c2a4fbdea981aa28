"""The JAX trainer: how a policy in JAX is loaded, learns, is evaluated and is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from g2rpo.run.description import RunDescription
from g2rpo.run.display import Display
from g2rpo.run.evaluation import Evaluation
from g2rpo.run.loop import Completions, Metrics, Run
from g2rpo.run.progress import Progress
from g2rpo.run.records import heldout_records
from g2rpo.run.shaping import Shaping
from g2rpo.run.supported import refuse_unsupported

from .checkpoint import read_state, restore_optimizer, save_checkpoint
from .evaluation import evaluate_policy
from .loading import load_described
from .optimizer import AdamW
from .options import SUPPORTED
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
    refuse_unsupported(description, SUPPORTED)
    return _Run(description).train(resume=resume, display=display)


class _Run(Run):
    supported = SUPPORTED

    def load(self, checkpoint: Path | None) -> None:
        description, options = self.description, self.description.optimization
        policy = load_described(description, str(checkpoint) if checkpoint else None)
        # One item of each task tells whether this engine can ask it.
        for task in description.data.tasks:
            if examples := heldout_records(description.data, task)[:1]:
                encode_prompts(policy, examples)
        self.shaping = Shaping(description)
        self.trained = Trained(policy, AdamW.of(options).start(policy.params))
        self.reference: Policy | None = None
        if options.beta:
            self.reference = load_policy(description.model.name, policy.placement)
        if checkpoint:
            self._restore(checkpoint)

    def _restore(self, checkpoint: Path) -> None:
        """Go back to where a checkpoint was written; the policy is already its own."""
        moments = restore_optimizer(checkpoint, self.trained.moments)
        self.trained = self.trained._replace(moments=moments)
        state = read_state(checkpoint)
        self.shaping.load_state_dict(state["shaping"])
        self.progress = Progress.from_json(state["progress"])

    def take_step(self) -> tuple[Metrics, Completions]:
        self.trained, metrics, completions = training_step(
            self.trained,
            self.shaping,
            self.description,
            self.progress,
            self.scorer,
            self.reference,
        )
        return metrics, completions

    def evaluate(self, advance: Callable[[int], None]) -> Evaluation:
        policy = self.trained.policy
        return evaluate_policy(policy, self.description, self.scorer, advance=advance)

    def checkpoint(self) -> Callable[[Path], None]:
        state = {"progress": self.progress.to_json(), "shaping": self.shaping.state_dict()}
        return lambda path: save_checkpoint(path, *self.trained, state)
