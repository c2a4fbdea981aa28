"""Options that TRL's ``GRPOConfig`` lacks: tasks, estimator, entropy bounds, length targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from trl import GRPOConfig

from g2rpo import LengthCalibration, LengthTarget, ShapingOptions
from g2rpo.shaping_options import length_targets

from .labels import TASK_COLUMN

_REPLACED = {
    "scale_rewards": "estimator ('grpo', 'grpo-batch' or 'dr-grpo')",
    "multi_objective_aggregation": "estimator='gdpo', or estimator_options={'decoupled': true}",
}
_BY_TASK = ("entropy_weights", "entropy_bounds", "length_targets", "task_weights")
_DICTS = ("estimator_options", "length_calibration", *_BY_TASK)


@dataclass
class G2RPOConfig(GRPOConfig):
    """Configuration of :class:`~g2rpo_trl.G2RPOTrainer`: TRL's ``GRPOConfig`` and what follows.

    The names are those of the reference trainer's configuration: ``entropy.low`` there is
    ``entropy_low`` here. Dictionaries may be given as JSON on the command line. Components of the
    reward are weighted by TRL's ``reward_weights``.

    Parameters
    ----------
    task_column : str
        Column of the data set with each prompt's task, strings or integers. If there is no such
        column, all prompts are one task, ``all``.
    tasks : list of str, optional
        Names of the tasks; by default those in the column, which an iterable data set cannot tell.
    estimator : str
        A name in :data:`g2rpo.ESTIMATORS`.
    estimator_options : dict, optional
        Its options: of ``gaussian`` they are ``task_stage``, ``ties``, ``resolution`` and
        ``decoupled``.
    entropy_weight : float
        Weight of the entropy term; 0 switches it off.
    entropy_weights : dict, optional
        Task -> weight, in place of the common one.
    entropy_low, entropy_high : float
        Bounds of a task's mean token entropy, in nats.
    entropy_bounds : dict, optional
        Task -> [low, high], in place of the common bounds, in nats.
    entropy_control : {"fixed", "adaptive"}
        Adaptive weights rise while a task's entropy is out of its bounds, and fall inside.
    entropy_control_rate : float
        Change of an adaptive weight in an optimizer step for each nat.
    entropy_max_weight : float
        Largest adaptive weight.
    length_mode : {"term", "reward", "off"}
        Length as a term of the loss, as one more reward component, or not at all.
    length_weight : float
        Weight of the term, or of the component.
    length_targets : dict, optional
        Task -> [minimum, low, high, maximum] in tokens, or ``reasoning`` or ``direct``, which
        follow from ``max_completion_length``. Lengths of other tasks are not rewarded.
    length_only_right : str, optional
        Name of a reward function: only lengths of responses that it gives more than 0 count.
    length_calibrate : bool
        Let the targets follow the lengths of right responses; needs ``length_only_right``.
    length_calibration : dict, optional
        How they follow: ``quantiles``, ``decay``, ``max_change``, ``min_samples`` as in
        :func:`g2rpo.calibrate_lengths`, and ``warmup_steps``, first batches of rollouts in which
        no length is rewarded (10).
    task_weights : dict, optional
        Task -> factor of its advantages; 1 where left out.

    Raises
    ------
    TypeError
        If the estimator does not take an option, or an option is of a wrong type.
    ValueError
        If a name is unknown, numbers are out of their range, or a field of TRL is set that one of
        these replaces.

    Examples
    --------
    >>> args = G2RPOConfig("out", bf16=False, length_targets={"ocr": [0, 0, 10, 20]})
    >>> args.target_of("ocr"), args.target_of("maths")
    (LengthTarget(minimum=0, low=0, high=10, maximum=20), None)
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*GRPOConfig._VALID_DICT_FIELDS, *_DICTS]

    task_column: str = field(
        default=TASK_COLUMN, metadata={"help": "column of the data set with each prompt's task"}
    )
    tasks: list[str] | None = field(
        default=None, metadata={"help": "names of the tasks; by default those in the column"}
    )
    estimator: str = field(default="gaussian", metadata={"help": "a name in g2rpo.ESTIMATORS"})
    estimator_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "its options, as JSON"}
    )
    entropy_weight: float = field(
        default=0.02, metadata={"help": "weight of the entropy term; 0 switches it off"}
    )
    entropy_weights: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "task: weight, as JSON"}
    )
    entropy_low: float = field(
        default=0.05, metadata={"help": "lower bound of a task's mean token entropy in nats"}
    )
    entropy_high: float = field(default=0.6, metadata={"help": "upper bound in nats"})
    entropy_bounds: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "task: [low, high], as JSON"}
    )
    entropy_control: str = field(
        default="fixed", metadata={"help": "fixed or adaptive weights of the entropy term"}
    )
    entropy_control_rate: float = field(
        default=0.02, metadata={"help": "change of an adaptive weight for each nat"}
    )
    entropy_max_weight: float = field(default=1.0, metadata={"help": "largest adaptive weight"})
    length_mode: str = field(
        default="term", metadata={"help": "length as a term of the loss, in the reward, or off"}
    )
    length_weight: float = field(
        default=1.0, metadata={"help": "weight of the length term or reward component"}
    )
    length_targets: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "task: [minimum, low, high, maximum] in tokens, reasoning or direct, as JSON"
        },
    )
    length_only_right: str | None = field(
        default=None,
        metadata={"help": "name of the reward function that tells which responses are right"},
    )
    length_calibrate: bool = field(
        default=False, metadata={"help": "let targets follow the lengths of right responses"}
    )
    length_calibration: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "how they follow, as JSON"}
    )
    task_weights: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "task: factor of its advantages, as JSON"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, ours in _REPLACED.items():
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise ValueError(f"{name} has no effect here and must be left out: set {ours}")
        # Tasks that no one lists are not known yet: here every name is one.
        names = (name for option in _BY_TASK for name in self.given(option))
        self.shaping_options(self.tasks or tuple(dict.fromkeys(names)) or ("all",))

    def shaping_options(
        self, tasks: Sequence[str], reward_weights: Sequence[float] | None = None
    ) -> ShapingOptions:
        """Return the options of the core's shaping, for tasks by name and weights of the rewards.

        Raises
        ------
        TypeError, ValueError
            As in :class:`G2RPOConfig`.
        """
        calibration = LengthCalibration.of(self.given("length_calibration"))
        if self.length_calibrate and self.length_only_right is None:
            raise ValueError(
                "length_calibrate needs length_only_right: the name of the reward function that "
                "tells which responses are right"
            )
        return ShapingOptions(
            tasks=tasks,
            estimator=self.estimator,
            estimator_options=self.given("estimator_options"),
            reward_weights=reward_weights,
            length_mode=cast(Any, self.length_mode),
            length_weight=self.length_weight,
            length_targets=self._targets(),
            length_only_right=self.length_only_right is not None,
            length_calibration=calibration if self.length_calibrate else None,
            entropy_weight=self.entropy_weight,
            entropy_weights=self.given("entropy_weights"),
            entropy_low=self.entropy_low,
            entropy_high=self.entropy_high,
            entropy_bounds=self.given("entropy_bounds"),
            entropy_control=cast(Any, self.entropy_control),
            entropy_control_rate=self.entropy_control_rate,
            entropy_max_weight=self.entropy_max_weight,
            task_weights=self.given("task_weights"),
        )

    def _targets(self) -> dict[str, LengthTarget]:
        return length_targets(self.given("length_targets"), self.max_completion_length)

    def given(self, name: str) -> dict[str, Any]:
        """Return an option that is a dictionary; empty if it was left out.

        Raises
        ------
        TypeError
            If it is anything else.
        """
        value = getattr(self, name) or {}
        if not isinstance(value, dict):
            raise TypeError(f"{name} must be a dictionary, or one as JSON, got {value!r}")
        return {str(key): each for key, each in value.items()}

    def target_of(self, task: str) -> LengthTarget | None:
        """Return a task's length target as configured, or None if it has none."""
        return self._targets().get(task)
