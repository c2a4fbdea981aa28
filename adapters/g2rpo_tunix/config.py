"""What tunix's ``GRPOConfig`` lacks: tasks, their bands and targets, and the core's options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from tunix.rl.grpo.grpo_learner import GRPOConfig

from g2rpo import LOSSES, LengthCalibration, LossOptions, ShapingOptions
from g2rpo.shaping_options import length_targets

_TUNIX_NAMES = {
    "loss_agg_mode": "aggregation",
    "loss_algo": "loss_type",
    "kl_loss_mode": "kl_kind",
    "advantage_estimator": "estimator",
}

#: Options of the core's shaping that have another name here.
_KEYS = {
    "entropy_low": "entropy_bounds",
    "entropy_high": "entropy_bounds",
    "entropy_bounds": "task_entropy_bounds",
    "entropy_weights": "task_entropy_weights",
}


@dataclass(kw_only=True)
class G2RPOConfig(GRPOConfig):
    """Configuration of :class:`~g2rpo_tunix.G2RPOLearner`.

    It replaces four fields of tunix's ``GRPOConfig`` by the core's own: ``loss_agg_mode``
    (``aggregation``), ``loss_algo`` (``loss_type``), ``kl_loss_mode`` (``kl_kind``) and
    ``advantage_estimator`` (``estimator``).

    Parameters
    ----------
    tasks : sequence of str
        Names of the tasks. Empty: all prompts are one task, and no column is read.
    task_column : str
        Column of the dataset with each prompt's task, by name or by number.
    estimator : str
        A name in :data:`g2rpo.ESTIMATORS`.
    estimator_options : mapping
        Its options, such as ``task_stage``, ``ties``, ``resolution``, ``decoupled``.
    reward_weights : sequence of float, optional
        Weight of each reward function; ones by default.
    entropy_weight : float
        Weight of the entropy term; 0 leaves it out.
    entropy_bounds : pair of float
        Band of a task's mean token entropy, in nats.
    task_entropy_weights : mapping
        Task -> weight, in place of ``entropy_weight``.
    task_entropy_bounds : mapping
        Task -> band, in place of ``entropy_bounds``.
    entropy_control : {"fixed", "adaptive"}
        Adaptive weights rise while a task's entropy is out of its band, and fall inside. They take
        one more pass of the policy, without gradient.
    entropy_control_rate : float
        Change of an adaptive weight in a mini-batch for each nat.
    entropy_max_weight : float
        Largest adaptive weight.
    length_mode : {"term", "reward", "off"}
        Length as a term of the loss, as one more reward component, or not at all.
    length_weight : float
        Weight of the term, or of the component.
    length_targets : mapping
        Task -> (minimum, low, high, maximum) in tokens; a task left out has no target. With one
        unnamed task the key is ``"all"``.
    length_only_right : str, optional
        Name of a reward function: only lengths of responses that it gives more than 0 count.
    length_calibrate : bool
        Let the targets follow the lengths of right responses; needs ``length_only_right``.
    length_calibration : mapping
        How they follow: options of :class:`g2rpo.LengthCalibration`.
    task_weights : mapping
        Task -> factor of its advantages; 1 where left out.
    loss_type, aggregation, epsilon, epsilon_high, dual_clip, kl_kind
        As in :class:`g2rpo.LossOptions`; None is the loss type's own default.
    beta : float
        Weight of the KL term. With 0, tunix computes no reference log-probabilities.
    sampling_seed : int, optional
        Seed of the vanilla rollout, changed from batch to batch. Without it tunix draws the same
        random numbers in every batch, unless the ``RolloutConfig`` is given another seed.

    Raises
    ------
    TypeError
        If the estimator does not know an option.
    ValueError
        If a name is unknown, a band or target is not ordered, or a replaced field is set.

    Examples
    --------
    >>> config = G2RPOConfig(tasks=("maths", "ocr"), task_entropy_bounds={"ocr": (0.0, 0.3)})
    >>> config.bounds
    ((0.2, 0.6), (0.0, 0.3))
    """

    algo_variant: str = "g2rpo"
    advantage_estimator: str = "g2rpo"
    policy_loss_fn: str = "g2rpo"
    reward_manager: str = "g2rpo"
    num_generations: int = 8
    beta: float = 0.0

    tasks: Sequence[str] = ()
    task_column: str = "task"
    estimator: str = "gaussian"
    estimator_options: Mapping[str, Any] = field(default_factory=dict)
    reward_weights: Sequence[float] | None = None
    entropy_weight: float = 0.02
    task_entropy_weights: Mapping[str, float] = field(default_factory=dict)
    entropy_bounds: tuple[float, float] = (0.2, 0.6)
    task_entropy_bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    entropy_control: Literal["fixed", "adaptive"] = "fixed"
    entropy_control_rate: float = 0.02
    entropy_max_weight: float = 1.0
    length_mode: Literal["term", "reward", "off"] = "off"
    length_weight: float = 0.1
    length_targets: Mapping[str, tuple[float, float, float, float]] = field(default_factory=dict)
    length_only_right: str | None = None
    length_calibrate: bool = False
    length_calibration: Mapping[str, Any] = field(default_factory=dict)
    task_weights: Mapping[str, float] = field(default_factory=dict)
    epsilon: float | None = None
    epsilon_high: float | None = None
    dual_clip: float | None = None
    loss_type: str = "ppo"
    aggregation: Literal["token", "sequence", "constant", "task"] | None = None
    kl_kind: Literal["k1", "k2", "k3", "k1+", "k3+", "k3-weighted"] = "k3-weighted"
    sampling_seed: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_replaced(self)
        options = self.shaping_options()
        self.tasks = tuple(self.tasks)
        self.loss_options(1)
        if self.length_calibrate and self.length_only_right is None:
            raise ValueError(
                "length_calibrate needs length_only_right: the name of the reward function that "
                "tells which responses are right"
            )
        if self.length_mode != "off" and not options.shapes_length:
            raise ValueError(f"length_mode {self.length_mode!r} needs length_targets, got none")

    def shaping_options(self) -> ShapingOptions:
        """Return the options of the core's shaping.

        Raises
        ------
        TypeError, ValueError
            If an option has another value.
        """
        if len(self.entropy_bounds) != 2:
            raise ValueError(f"entropy_bounds must be (low, high), got {self.entropy_bounds}")
        low, high = self.entropy_bounds
        calibration = LengthCalibration.of(self.length_calibration)
        return ShapingOptions(
            tasks=self.tasks or ("all",),
            estimator=self.estimator,
            estimator_options=self.estimator_options,
            reward_weights=self.reward_weights,
            length_mode=self.length_mode,
            length_weight=self.length_weight,
            length_targets=length_targets(self.length_targets),
            length_only_right=self.length_only_right is not None,
            length_calibration=calibration if self.length_calibrate else None,
            entropy_weight=self.entropy_weight,
            entropy_weights=self.task_entropy_weights,
            entropy_low=low,
            entropy_high=high,
            entropy_bounds=self.task_entropy_bounds,
            entropy_control=self.entropy_control,
            entropy_control_rate=self.entropy_control_rate,
            entropy_max_weight=self.entropy_max_weight,
            task_weights=self.task_weights,
            keys=_KEYS,
        )

    def loss_options(self, max_completion_length: int) -> LossOptions:
        """Return the options of the loss for responses of so many tokens, padding included."""
        names = {field.name for field in fields(LossOptions)} & {f.name for f in fields(self)}
        given = {name: getattr(self, name) for name in names}
        if (self.aggregation or LOSSES[self.loss_type].aggregation) == "constant":
            given["max_completion_length"] = max_completion_length
        return LossOptions(**given)

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks, or ``("all",)`` where there is one without a name."""
        return tuple(self.tasks) or ("all",)

    @property
    def bounds(self) -> tuple[tuple[float, float], ...]:
        """The entropy band of every task, in their order, in nats."""
        bands = (
            self.task_entropy_bounds.get(task, self.entropy_bounds) for task in self.task_names
        )
        return tuple((low, high) for low, high in bands)

    @property
    def shapes_entropy(self) -> bool:
        """Whether there is an entropy term, or may come to be one."""
        return self.shaping_options().shapes_entropy


def refuse_replaced(config: Any) -> None:
    """Raise if a field of tunix's is set that the core's own option replaces."""
    for name, ours in _TUNIX_NAMES.items():
        default = type(config).__dataclass_fields__[name].default
        if getattr(config, name) != default:
            raise ValueError(f"{name} has no effect here and must be left out: set {ours} instead")
