"""tunix's agentic learner with Gaussian advantages on a running scale.

It scores and estimates one prompt's responses as soon as they are there, so no statistic of a batch
exists: :class:`~g2rpo_tunix.RunningScale` takes its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from tunix.rl import rl_cluster as rl_cluster_lib
from tunix.rl.agentic.agentic_grpo_learner import GRPOConfig, GRPOLearner

from .checkpoint import keep_state
from .datasets import Checked
from .reward_manager import AgenticTaskRewardManager
from .running_scale import RunningScale
from .seeds import seed_of

from . import registry as _registry  # noqa: F401  # isort: skip


@dataclass(kw_only=True)
class AgenticG2RPOConfig(GRPOConfig):
    """Configuration of :class:`~g2rpo_tunix.AgenticG2RPOLearner`.

    Parameters
    ----------
    tasks, task_column
        As in :class:`~g2rpo_tunix.G2RPOConfig`.
    scale_options : mapping
        Options of :class:`~g2rpo_tunix.RunningScale`: ``decay``, ``minimum``, ``ties``, …
    sampling_seed : int, optional
        Seed of the vanilla rollout, changed from response to response. Without it tunix draws the
        same random numbers for each of them, so that all responses to a prompt are one.

    Examples
    --------
    >>> AgenticG2RPOConfig(tasks=("maths", "ocr"), num_generations=8).reward_manager
    'g2rpo-agentic'
    """

    advantage_estimator: str = "g2rpo-running-scale"
    reward_manager: str = "g2rpo-agentic"
    tasks: Sequence[str] = ()
    task_column: str = "task"
    scale_options: Mapping[str, Any] = field(default_factory=dict)
    sampling_seed: int | None = None


class AgenticG2RPOLearner(GRPOLearner[AgenticG2RPOConfig]):
    """tunix's agentic ``GRPOLearner`` with each task's advantages on its running scale.

    The scale is saved in tunix's checkpoints and read back from them; evaluation does not change
    it. The loss is tunix's own: there is no entropy and no length term here.

    Parameters
    ----------
    rl_cluster : tunix.rl.rl_cluster.RLCluster
        As for tunix's learner.
    algo_config : AgenticG2RPOConfig
        Tasks and scale.
    **options
        As for tunix's learner: ``reward_fns``, ``chat_parser``, ``agent_class``, ``env_class``, …

    Raises
    ------
    TypeError
        If ``algo_config`` is no ``AgenticG2RPOConfig``.
    """

    def __init__(self, rl_cluster: Any, algo_config: AgenticG2RPOConfig, **options: Any) -> None:
        if not isinstance(algo_config, AgenticG2RPOConfig):
            raise TypeError(
                f"algo_config must be an AgenticG2RPOConfig, got {type(algo_config).__name__}"
            )
        super().__init__(rl_cluster=rl_cluster, algo_config=algo_config, **options)
        self.scale: RunningScale = RunningScale(algo_config.tasks, **algo_config.scale_options)
        if not isinstance(self.reward_manager, AgenticTaskRewardManager):
            raise ValueError(
                "reward_manager must be 'g2rpo-agentic' or a subclass of "
                f"AgenticTaskRewardManager, got {algo_config.reward_manager!r}"
            )
        self.reward_manager.scale = self.scale
        keep_state(rl_cluster, self.scale)
        self._sampling = Lock()

    def train(
        self,
        train_dataset: Iterable[Any],
        eval_dataset: Iterable[Any] | None = None,
        skip_jit: bool = False,
    ) -> None:
        """Train on batches of columns, all of them NumPy arrays (P,), one of them ``prompts``."""
        checked = None if eval_dataset is None else Checked(eval_dataset, self.algo_config)
        super().train(Checked(train_dataset, self.algo_config), checked, skip_jit)

    def _model_call(
        self, chat_lists: Any, env: Any = None, max_generation_steps: int | None = None
    ) -> Any:
        seed = self.algo_config.sampling_seed
        if seed is None or env is None:
            return super()._model_call(chat_lists, env, max_generation_steps)
        place = env.extra_kwargs
        # The seed stands in a configuration that all responses share.
        with self._sampling:
            config = self.rl_cluster.get_rollout_config(mode=rl_cluster_lib.Mode.TRAIN)
            config.seed = seed_of(seed, place["group_id"], place["pair_index"], len(chat_lists))
            return super()._model_call(chat_lists, env, max_generation_steps)
