"""From rewards and lengths to the advantages of the two surrogate terms."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import g2rpo
from g2rpo.run.controllers import EntropyControl, LengthControl
from g2rpo.run.description import RunDescription
from g2rpo.run.scoring import reward_weights

from .scoring import Floats, Rewards


class Advantages(NamedTuple):
    """What each rollout's tokens are pushed by, (N,) each.

    Attributes
    ----------
    policy : Array
        Advantages of the rewards.
    length : Array or None
        Advantages of the length rewards; None if length is no term of its own.
    length_reward : array or None
        How well each response's length fits its target, from 0 to 1; NaN where no length is
        rewarded. None if length is not shaped.
    """

    policy: Array
    length: Array | None
    length_reward: Floats | None


class Shaping:
    """Turns rewards and lengths into advantages, as a run is described.

    It carries what an estimator, length targets and entropy weights remember from step to step;
    ``state_dict`` goes into the checkpoint.

    Parameters
    ----------
    description : RunDescription
        Its estimator, rewards, length and entropy sections; the tasks are named.
    """

    def __init__(self, description: RunDescription) -> None:
        self._description = description
        self._length, self._entropy = LengthControl(description), EntropyControl(description)
        self._ema: g2rpo.EMAState | None = None
        if description.estimator.name == "ema-grpo":
            zeros = jnp.zeros(1, jnp.float32)
            self._ema = g2rpo.EMAState.start(len(description.data.tasks), zeros)

    def __call__(
        self,
        rewards: Rewards,
        lengths: np.ndarray,
        groups: np.ndarray,
        tasks: np.ndarray,
    ) -> Advantages:
        """Return the advantages of a step's N rollouts; called once a step.

        Parameters
        ----------
        rewards : Rewards
            N scored responses.
        lengths : array (N,)
            Tokens.
        groups, tasks : array (N,), int32
            Prompt and task of each response; tasks number ``description.data.tasks``.
        """
        mode = self._description.length.mode
        length_reward = None if mode == "off" else self._length_reward(rewards, lengths, tasks)
        self._length.observe(lengths, rewards.accuracy, tasks)
        length = None
        if mode == "term":
            length = _estimate(g2rpo.gaussian_advantages, length_reward, groups, tasks)
        in_reward = length_reward if mode == "reward" else None
        return Advantages(
            self._policy_advantages(rewards, in_reward, groups, tasks), length, length_reward
        )

    def steer(self, entropies: Array, mask: Array, tasks: np.ndarray) -> RunDescription:
        """Return the description with this step's entropy weights; called once a step.

        Parameters
        ----------
        entropies, mask : Array (N, T)
            Entropy of each token, in nats, and which tokens there are.
        tasks : array (N,), int32
            Task of each response.
        """
        number = len(self._description.data.tasks)
        means, present = g2rpo.task_means(np.asarray(entropies), np.asarray(mask), tasks, number)
        self._entropy.observe(means, present)
        return self._entropy.steered(self._description)

    def metrics(self) -> dict[str, float]:
        """Return each task's length target and entropy weight as they are now."""
        return {**self._length.metrics(), **self._entropy.metrics()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON holds it."""
        return {
            "ema": self._ema.to_json() if self._ema else {},
            "length": self._length.state_dict(),
            "entropy": self._entropy.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._length.load_state_dict(state["length"])
        self._entropy.load_state_dict(state["entropy"])
        if self._ema:
            self._ema = g2rpo.EMAState.from_json(state["ema"], self._ema.mean)

    def _policy_advantages(
        self,
        rewards: Rewards,
        length_reward: Floats | None,
        groups: np.ndarray,
        tasks: np.ndarray,
    ) -> Array:
        estimator = self._description.estimator
        function = g2rpo.ESTIMATORS[estimator.name]
        # Other estimators have no use for what the description says of Gaussian matching.
        options = estimator.model_dump(exclude={"name"}) if estimator.name == "gaussian" else {}
        if estimator.decoupled or estimator.name == "gdpo":
            columns, weights = self._components(rewards, length_reward)
            options["component_weights"] = weights
            return _estimate(function, columns, groups, tasks, **options)
        total = rewards.reward
        if length_reward is not None:
            # A length that is not rewarded adds nothing; a reward that is absent stays so.
            weight = np.float32(self._description.length.weight)
            total = total + weight * np.nan_to_num(length_reward)
        if self._ema:
            advantages, self._ema = _estimate_with_state(total, groups, tasks, self._ema)
            return advantages
        return _estimate(function, total, groups, tasks, **options)

    def _components(
        self, rewards: Rewards, length_reward: Floats | None
    ) -> tuple[Floats, tuple[float, ...]]:
        """Return the components of the rewards (N, K), and what each of them weighs."""
        weights = reward_weights(self._description)._asdict()
        columns = [getattr(rewards, name) for name in weights]
        if length_reward is not None:
            columns.append(length_reward)
            weights["length"] = self._description.length.weight
        return np.stack(columns, axis=1), tuple(weights.values())

    def _length_reward(self, rewards: Rewards, lengths: np.ndarray, tasks: np.ndarray) -> Floats:
        thresholds = self._length.thresholds.astype(np.float32)[tasks]
        # NaN is no reward, and takes no part in any ranking.
        counts = ~np.isnan(thresholds).any(axis=1) & self._length.is_rewarding
        if self._description.length.only_right:
            # Without this gate a policy learns that half an answer is shorter than a whole one.
            counts &= rewards.accuracy > 0
        return g2rpo.length_reward(lengths.astype(np.float32), thresholds, right=counts)


@partial(jax.jit, static_argnames=("function", "options"))
def _compiled(function: Any, rewards: Any, groups: Any, tasks: Any, options: tuple[Any]) -> Array:
    given = dict(options)
    if "component_weights" in given:
        given["component_weights"] = list(given["component_weights"])
    return function(rewards, groups, tasks, **given)


def _estimate(
    function: Any, rewards: Any, groups: np.ndarray, tasks: np.ndarray, **options: Any
) -> Array:
    """Return the advantages by an estimator, compiled once for a number of rollouts."""
    return _compiled(function, rewards, groups, tasks, tuple(options.items()))


_estimate_with_state = jax.jit(g2rpo.ema_grpo_advantages)
