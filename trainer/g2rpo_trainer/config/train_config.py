"""The configuration of a run: all sections, and the checks across them."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any, Self

from pydantic import Field, model_validator

from g2rpo._shown import listed
from g2rpo.shaping_options import unknown_tasks
from g2rpo_trainer.errors import RunError

from .data import Data
from .keys import joined_key
from .rollout import Rewards, Rollout
from .section import Section
from .shaping import Entropy, Estimator, Length, TaskWeights
from .training import Model, Optimization, Output

TASK_KEYS = (
    "length.targets",
    "entropy.bounds",
    "entropy.weights",
    "task_weights.weights",
    "rollout.limits",
    "data.mixing.weights",
)
"""Keys whose values are mappings from names of tasks."""

# They decide which responses there are; the others may also name tasks that a run leaves out.
_TRAINED_ONLY = ("rollout.limits", "data.mixing.weights")


class TrainConfig(Section):
    """Configuration of a run.

    The defaults suit a pretrained model on a GPU. :func:`load_config` lays presets, files and
    single values over them.

    Raises
    ------
    pydantic.ValidationError
        If a value is of another kind or out of its range, a key is unknown, or sections contradict
        each other; from :func:`load_config` a `RunError` that names the file.

    Examples
    --------
    >>> config = TrainConfig(data=Data(tasks=["maths"]), optimization=Optimization(steps=50))
    >>> config.optimization.steps, config.estimator.name
    (50, 'gaussian')
    """

    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of data, sampling and order")
    model: Model = Model()
    data: Data = Data()
    rollout: Rollout = Rollout()
    rewards: Rewards = Rewards()
    estimator: Estimator = Estimator()
    length: Length = Length()
    entropy: Entropy = Entropy()
    task_weights: TaskWeights = TaskWeights()
    optimization: Optimization = Optimization()
    output: Output = Output()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        faults = [*self._disagreements(), *self._unreachable_targets(self.data.tasks)]
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _disagreements(self) -> Iterator[str]:
        rollout, optimization = self.rollout, self.optimization
        if self.entropy.low > self.entropy.high:
            yield (
                f"entropy.low {self.entropy.low} is above entropy.high {self.entropy.high}; "
                "bounds must ascend"
            )
        if optimization.updates_per_batch > rollout.prompts_per_step:
            yield (
                f"optimization.updates_per_batch {optimization.updates_per_batch} is more "
                f"than rollout.prompts_per_step {rollout.prompts_per_step}; "
                "an update needs at least one prompt"
            )
        subset = int(self.estimator.options.get("k", 4))
        if self.estimator.name == "pass@k" and subset >= rollout.num_generations:
            yield (
                f"estimator.options.k {subset} must be less than rollout.num_generations "
                f"{rollout.num_generations}: of as many responses there is one subset, and no "
                "advantage"
            )
        is_on_policy = rollout.engine == "transformers" and optimization.updates_per_batch == 1
        if optimization.off_policy_mask_threshold and is_on_policy:
            yield (
                f"optimization.off_policy_mask_threshold is "
                f"{optimization.off_policy_mask_threshold:g}, but with "
                "optimization.updates_per_batch 1 and rollout.engine transformers every response "
                "is the policy's own; leave it out, or take several updates"
            )

    def _unreachable_targets(self, tasks: Iterable[str]) -> Iterator[str]:
        if self.length.mode == "off":
            return
        for task in tasks:
            longest = self.rollout.limit_of(task)
            target = self.length.target_of(task, longest)
            own = ("limits", task) if task in self.rollout.limits else ("max_completion_length",)
            if target is not None and target.minimum >= longest:
                yield (
                    f"{joined_key(('length', 'targets', task))} rewards nothing up to "
                    f"{target.minimum:g} tokens, but {joined_key(('rollout', *own))} is {longest}; "
                    "lower the target or raise that"
                )

    def check_tasks(self, known: Collection[str], trained: Collection[str]) -> None:
        """Check all that the configuration says of tasks by name, once the tasks are known.

        Parameters
        ----------
        known : collection of str
            All tasks of the data.
        trained : collection of str
            Tasks of the run, of which ``data.tasks`` may leave out some.

        Raises
        ------
        RunError
            If a mapping names a task that does not exist, a limit or a share is for a task that is
            not trained, or a task's longest response is too short for its length target. One line
            for each.

        Examples
        --------
        >>> config = TrainConfig(length=Length(targets={"orc": "direct"}))
        >>> config.check_tasks(["ocr", "maths"], ["maths"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        g2rpo_trainer.errors.RunError: length.targets: unknown task 'orc'; did you mean 'ocr'? ...
        """
        faults = [*self._misnamed_tasks(known, trained), *self._unreachable_targets(trained)]
        if faults:
            raise RunError("\n".join(faults))

    def _misnamed_tasks(self, known: Collection[str], trained: Collection[str]) -> Iterator[str]:
        for key in TASK_KEYS:
            mapping: Mapping[str, Any] = attrgetter(key)(self)
            yield from unknown_tasks(key, mapping, known)
            for task in mapping:
                if key in _TRAINED_ONLY and task in known and task not in trained:
                    yield (
                        f"{joined_key([*key.split('.'), task])} is set, but the run leaves that "
                        f"task out (data.tasks: {listed(trained)}); leave one of them out"
                    )
