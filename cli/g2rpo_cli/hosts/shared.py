"""Rules that both tables share: keys of data, shaping and loss, and keys that neither host has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from g2rpo import LossOptions
from g2rpo_trainer.config import TrainConfig

from .keys import Fate, Rule, carried, held, lost, lost_unless, of_tasks, option, spare, when

#: Loss types that are one formula with several defaults.
CLIPPED = ("ppo", "grpo", "dapo", "dr-grpo")

_FILES = held("data/train.parquet, data/test.parquet")
_TRAIN = held("data/train.parquet: the prompts of the run in their order, which is not shuffled")
_SAMPLING = "prompts without signal stay in the batch"
_ADAPTED = "task weights are fixed here"
_EQUITY = "the tasks' gradients are not measured here"


def shaping(name_of: Callable[[str], str]) -> dict[str, Rule]:
    """Return the rules of the keys of length, entropy and task weights that both hosts have.

    The function makes the name of an option out of that of the key.
    """
    numbers = (
        *("length.mode", "length.weight", "entropy.weight", "entropy.low", "entropy.high"),
        *("entropy.control_rate", "entropy.max_weight"),
    )
    by_task = ("entropy.weights", "entropy.bounds", "task_weights.weights")
    return {
        **{key: option(name_of(key)) for key in numbers},
        **{key: of_tasks(name_of(key)) for key in by_task},
        "length.targets": _targets(name_of("length.targets")),
    }


def calibration(rule_of: Callable[[str], Rule]) -> dict[str, Rule]:
    """Return the rules of the section ``length.calibration``, which count while it is on."""

    def calibrates(rule: Rule) -> Rule:
        return when(lambda c: c.length.calibrate, rule, "length.calibrate is off")

    names = ("quantiles", "decay", "max_change", "min_samples", "warmup_steps")
    return {(key := f"length.calibration.{name}"): calibrates(rule_of(key)) for name in names}


def vllm_memory(name: str, host: str) -> Rule:
    """Return the rule of the share of a GPU's memory that vLLM takes."""
    default = f"{host}'s own default is taken"
    return uses_vllm(when(lambda c: c.rollout.vllm_memory is not None, option(name), default))


def floor(linear: str, rule: Rule) -> Rule:
    """Return the rule of the lowest learning rate, which counts for the schedule ``cosine``.

    `linear` is the reason why the schedule ``linear`` cannot have it.
    """

    def apply(value: float, config: TrainConfig) -> Fate:
        if not value or config.optimization.schedule == "constant":
            return Fate("not needed", "the schedule does not use it")
        if config.optimization.schedule == "linear":
            return Fate("not carried", linear)
        return rule(value, config)

    return apply


def number_of_loss(name: str, fate_of: Callable[[float, LossOptions], Fate]) -> Rule:
    """Return the rule of a number of the loss, as its type has it where it is left out."""

    def rule(value: Any, config: TrainConfig) -> Fate:
        loss = loss_of(config)
        found = getattr(loss, name)
        if found is None:
            return Fate("not needed", f"{loss.loss_type} does not take it")
        return fate_of(found, loss)

    return rule


def uses_vllm(rule: Rule) -> Rule:
    """Return a rule that counts where vLLM samples."""
    return when(lambda c: c.rollout.engine == "vllm", rule, "rollout.engine is not vllm")


def is_gaussian(rule: Rule) -> Rule:
    """Return a rule that counts for the estimator ``gaussian``."""
    return when(lambda c: c.estimator.name == "gaussian", rule, "is an option of gaussian")


def _draws_again(rule: Rule) -> Rule:
    sampling = "rollout.dynamic_sampling.mode is off"
    return when(lambda c: c.rollout.dynamic_sampling.mode != "off", rule, sampling)


def _adapts(rule: Rule) -> Rule:
    return when(lambda c: c.task_weights.adapt, rule, "task_weights.adapt is 0")


SHARED: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *("data.source", "data.level", "data.split", "data.subset", "data.revision"),
            *("data.columns", "data.problem_type", "data.image_dir", "data.video_dir"),
            *("data.video_frames", "data.eval_fraction"),
        ),
        _FILES,
    ),
    "data.mixing.temperature": _TRAIN,
    "data.mixing.weights": _TRAIN,
    "data.eval_items": held("data/test.parquet"),
    "rollout.limits": lost_unless({}, "all tasks share the longest response", "names no task"),
    "rollout.stop": lost_unless(
        None, "no text ends a response here; it goes on to the model's own end, or to its limit"
    ),
    "rollout.dynamic_sampling.mode": lost_unless("off", _SAMPLING),
    "rollout.dynamic_sampling.band": _draws_again(lost(_SAMPLING)),
    "rollout.dynamic_sampling.max_tries": _draws_again(lost(_SAMPLING)),
    "rollout.shared_prompts": spare("changes the speed alone"),
    "rollout.compile": spare("changes the speed alone"),
    "task_weights.adapt": lost_unless(0, _ADAPTED),
    "task_weights.rate": _adapts(lost(_ADAPTED)),
    "task_weights.low": _adapts(lost(_ADAPTED)),
    "task_weights.high": _adapts(lost(_ADAPTED)),
    "output.plots": lost_unless(False, "no pictures are drawn; the trackers draw curves"),
    "output.equity_steps": lost_unless(0, _EQUITY),
    "output.equity_prompts": when(
        lambda c: c.output.equity_steps, lost(_EQUITY), "output.equity_steps is 0"
    ),
}
"""Keys that the converted data carry, and keys that neither host has anything for."""


def loss_of(config: TrainConfig) -> LossOptions:
    """Return the loss's options with the defaults of its type."""
    return config.optimization.loss_options(config.rollout.max_completion_length)


def _targets(name: str) -> Rule:
    """Return the rule of the length targets of trained tasks.

    A kind that follows from a task's own limit becomes four numbers, for hosts have one limit.

    Examples
    --------
    >>> from g2rpo_trainer.config import Data, Length, Rollout
    >>> config = TrainConfig(
    ...     data=Data(source="a.jsonl", tasks=["ocr", "sums"]),
    ...     rollout=Rollout(limits={"ocr": 64}),
    ...     length=Length(targets={"ocr": "direct", "sums": "direct", "box": "direct"}),
    ... )
    >>> _targets("length_targets")(config.length.targets, config).options
    {'length_targets': {'ocr': [0.0, 0.0, 2.0, 8.0], 'sums': 'direct'}}
    """

    def rule(value: Any, config: TrainConfig) -> Fate:
        found: dict[str, Any] = {}
        for task, target in value.items():
            if task not in config.data.tasks:
                continue
            given = config.length.target_of(task, config.rollout.limit_of(task))
            assert given is not None
            numbers = [given.minimum, given.low, given.high, given.maximum]
            is_kind = isinstance(target, str) and task not in config.rollout.limits
            found[task] = target if is_kind else [float(each) for each in numbers]
        return carried({name: found}) if found else Fate("not needed", "names no trained task")

    return rule
