"""Train the policies of many seeds under one setting, and measure them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import g2rpo
from g2rpo.advantages import takes_lengths

from .policies import Batch, Objective, Policies, loss_gradient, task_gradients
from .world import LONGEST, TARGETS, TASKS, Flags, Floats, Prompts, Rollouts, World, task_means

#: Estimators with statistics of the whole batch: each seed needs a call of its own.
OF_THE_BATCH = ("grpo-batch", "gdpo", "reinforce++", "reinforce++-baseline")
HELD_OUT, EVALUATE_EVERY = 24, 20


@dataclass(frozen=True)
class Setting:
    """One way to train; the defaults are those of the library.

    Attributes
    ----------
    estimator, options
        Name in :data:`g2rpo.ESTIMATORS` and its options.
    loss : mapping
        Fields of :class:`g2rpo.LossOptions`.
    updates : int
        Updates on the same rollouts.
    learning_rate : float
        Of Adam.
    temperature : float
        Of the samples that are trained on.
    group_size, prompts : int
        Responses to a prompt, and prompts of each task in a step.
    candidates : int
        Prompts that are sampled for each that is kept, at most: those without signal are dropped as
        long as there are others. 1 keeps all.
    outliers : (float, float)
        Share of the rewards that is multiplied, and by how much.
    flipped : float
        Share of the all-or-nothing rewards that a noisy verifier turns round.
    scale : float
        Factor of the rewards of the first task in training; held-out rewards stay as they are.
    noise : float
        Standard deviation of what is added to every reward.
    format_weight : float
        Weight of a second component that is 1 for nearly all responses soon: having stopped.
    length : {"off", "term", "reward"}
        Length rewards as a term of the loss, or as a component of the reward.
    length_weight : float
        Of either.
    calibrated, gate : bool
        Length targets that follow the right responses; length rewards of right responses only.
    entropy_weight : float
        Weight of the entropy term, the first one if it adapts.
    entropy_band : (float, float)
        Bounds in nats.
    entropy_estimate : {"exact", "sampled"}
        As in :class:`Objective`.
    entropy_rate : float
        Rate at which the weight adapts; 0 for never.
    follow_norms : int
        Adapt the task weights to the gradient norms every so many steps; 0 for never.
    """

    estimator: str = "gaussian"
    options: Mapping[str, Any] = field(default_factory=dict)
    loss: Mapping[str, Any] = field(default_factory=dict)
    updates: int = 1
    learning_rate: float = 0.1
    temperature: float = 1.0
    group_size: int = 8
    prompts: int = 2
    candidates: int = 1
    outliers: tuple[float, float] = (0.0, 1.0)
    flipped: float = 0.0
    scale: float = 1.0
    noise: float = 0.0
    format_weight: float = 0.0
    length: str = "off"
    length_weight: float = 0.3
    calibrated: bool = False
    gate: bool = True
    entropy_weight: float = 0.0
    entropy_band: tuple[float, float] = (0.2, 0.6)
    entropy_estimate: str = "exact"
    entropy_rate: float = 0.0
    follow_norms: int = 0

    @property
    def objective(self) -> Objective:
        """Return the options of the loss."""
        weight = self.length_weight if self.length == "term" else 0.0
        loss = dict(self.loss)
        return Objective(loss, self.temperature, weight, *self.entropy_band, self.entropy_estimate)


@dataclass
class State:
    """Moments, targets and weights that adapt from step to step, of S seeds with K tasks each."""

    ema: g2rpo.EMAState
    targets: Floats
    entropy_weights: Floats
    task_weights: Floats

    @classmethod
    def start(cls, setting: Setting, seeds: int) -> State:
        """Return the state before the first step."""
        ones = np.ones((seeds, len(TASKS)))
        return cls(
            g2rpo.EMAState.start(ones.size, np.zeros(1)),
            np.tile(TARGETS, (seeds, 1)),
            setting.entropy_weight * ones,
            ones,
        )


def run(setting: Setting, world: World, start: Floats, steps: int) -> dict[str, Floats]:
    """Train from the weights ``start`` (S, T V, F), and return measurements of every seed.

    Returns
    -------
    dict of str to array
        ``curve``, ``length`` (S, E, K): held-out reward and mean length in tokens, E times from the
        start to the end. ``entropy`` (S, steps, K) in nats and ``norms`` (S, steps, K), the norm of
        each task's own gradient. ``no_signal`` (S, K), the share of groups without signal;
        ``misplaced`` (S,), mean absolute advantage of their responses; ``sampled`` (S,), groups
        that were sampled for each that was kept; ``distance`` (S, K, 2), the W1 and W2 distances of
        the advantages to N(0, 1).
    """
    policies, state = Policies(start), State.start(setting, len(start))
    evaluations, logged = [], []
    for step in range(steps + 1):
        if step % EVALUATE_EVERY == 0 or step == steps:
            evaluations.append(evaluate(world, policies))
        if step < steps:
            logged.append(training_step(setting, world, policies, state, step))
    columns = {name: np.stack([each[name] for each in logged], axis=1) for name in logged[0]}
    curve, length = (np.stack(each, axis=1) for each in zip(*evaluations, strict=True))
    seen = columns["advantages"][:, ::5]  # enough for a distance
    return {
        "curve": curve,
        "length": length,
        "entropy": columns["entropy"],
        "norms": columns["norms"],
        "no_signal": columns["no_signal"].mean(axis=1),
        "misplaced": columns["misplaced"].mean(axis=1),
        "sampled": columns["sampled"].mean(axis=1),
        "distance": distances(np.moveaxis(seen, 1, 2).reshape(*seen.shape[:1], len(TASKS), -1)),
    }


def evaluate(world: World, policies: Policies) -> tuple[Floats, Floats]:
    """Return held-out rewards and lengths (S, K); the same prompts and noise each time."""
    prompts = world.prompts("held-out", 0, HELD_OUT)
    rollouts = world.sample("held-out", 0, policies.logits(prompts.features), prompts, 4)
    scores = world.rewards("held-out", 0, rollouts.share, prompts.tasks)
    return task_means(scores, prompts.tasks), task_means(rollouts.lengths, prompts.tasks)


def training_step(
    setting: Setting, world: World, policies: Policies, state: State, step: int
) -> dict[str, Floats]:
    """Sample, score, and update; return measurements of the step, each (S, …)."""
    prompts, rollouts, rewards, sampled = collect(setting, world, policies, step)
    found, of_length = advantages(setting, rewards, rollouts, state)
    weights = np.repeat(state.task_weights, setting.prompts, axis=1)[..., None]
    batch = Batch(
        rollouts.tokens,
        rollouts.mask,
        found * weights,
        None if of_length is None else of_length * weights,
    )
    penalised = state.entropy_weights if setting.entropy_weight else None
    old = norms = entropy = None
    for _ in range(setting.updates):
        logits = policies.logits(prompts.features)
        gradient = loss_gradient(setting.objective, logits, batch, penalised, old)
        of_tasks = task_gradients(gradient.by_logits, prompts.features)
        if old is None:  # what is logged is that of the policy that sampled
            old, entropy = gradient.logprobs, gradient.entropy
            norms = np.sqrt((of_tasks**2).sum(axis=(2, 3)))
        policies.descend(of_tasks.sum(axis=1), setting.learning_rate)
    assert norms is not None
    assert entropy is not None
    adapt(setting, state, norms, entropy, step)
    silent = rewards.max(axis=2) == rewards.min(axis=2)
    sizes = np.abs(found).mean(axis=2) * silent
    return {
        "entropy": entropy,
        "norms": norms,
        "no_signal": task_means(silent, prompts.tasks),
        "misplaced": sizes.sum(axis=1) / np.maximum(1, silent.sum(axis=1)),
        "sampled": sampled,
        "advantages": found.reshape(len(found), len(TASKS), -1),
    }


def adapt(setting: Setting, state: State, norms: Floats, entropy: Floats, step: int) -> None:
    """Adapt the weights of tasks and of the entropy term for the next steps."""
    if setting.follow_norms and (step + 1) % setting.follow_norms == 0:
        # Equal responses with unequal rewards have a gradient of rounding errors, not of 0.
        present = norms > 1e-9 * norms.max(axis=1, keepdims=True)
        state.task_weights = np.stack(
            [
                g2rpo.adapt_task_weights(own, weights, present=there)
                for own, weights, there in zip(norms, state.task_weights, present, strict=True)
            ]
        )
    if setting.entropy_rate:
        low, high = (np.full(entropy.size, bound) for bound in setting.entropy_band)
        adapted = g2rpo.adapt_entropy_weights(
            state.entropy_weights.reshape(-1),
            entropy.reshape(-1),
            low,
            high,
            learning_rate=setting.entropy_rate,
        )
        state.entropy_weights = adapted.reshape(entropy.shape)


def collect(
    setting: Setting, world: World, policies: Policies, step: int
) -> tuple[Prompts, Rollouts, Floats, Floats]:
    """Return the prompts, responses and rewards (S, P, G) of a step.

    The last is the number of groups that were sampled for each that was kept, (S,): dynamic
    sampling goes on task by task, ``setting.prompts`` at a time, until enough groups have signal.
    """
    count = setting.prompts * setting.candidates
    prompts = world.prompts("training", step, count)
    logits = policies.logits(prompts.features) / setting.temperature
    rollouts = world.sample("training", step, logits, prompts, setting.group_size)
    rewards = world.rewards("training", step, rollouts.share, prompts.tasks)
    rewards = corrupted(setting, world, step, rewards, prompts)
    seeds = len(rewards)
    if setting.candidates == 1:
        return prompts, rollouts, rewards, np.ones(seeds)
    silent = (rewards.max(axis=2) == rewards.min(axis=2)).reshape(seeds, len(TASKS), count)
    order = silent.argsort(axis=2, stable=True)[..., : setting.prompts]
    enough = (~silent).cumsum(axis=2) >= setting.prompts
    needed = np.where(enough.any(axis=2), enough.argmax(axis=2) + 1, count)
    sampled = np.ceil(needed / setting.prompts).mean(axis=1)
    rows = (order + count * np.arange(len(TASKS))[:, None]).reshape(seeds, -1)
    kept = np.arange(seeds)[:, None], rows
    chosen = Rollouts(rollouts.tokens[kept], rollouts.mask[kept], rollouts.share[kept])
    tasks = np.repeat(np.arange(len(TASKS)), setting.prompts)
    return (
        Prompts(prompts.features[kept], prompts.answers[kept], tasks),
        chosen,
        rewards[kept],
        sampled,
    )


def corrupted(
    setting: Setting, world: World, step: int, rewards: Floats, prompts: Prompts
) -> Floats:
    """Return rewards with a verifier's mistakes, another scale, noise and outliers."""
    shape = rewards.shape[1:]
    if setting.flipped:
        binary = np.asarray([task.shape == "binary" for task in TASKS])[prompts.tasks, None]
        drawn = world.draw("flipped", step, lambda rng: rng.random(shape))
        rewards = np.where((drawn < setting.flipped) & binary, 1 - rewards, rewards)
    if setting.scale != 1:
        rewards = np.where(prompts.tasks[:, None] == 0, setting.scale * rewards, rewards)
    if setting.noise:
        rewards = rewards + world.draw(
            "noise", step, lambda rng: rng.normal(0, setting.noise, shape)
        )
    share, factor = setting.outliers
    if share:
        drawn = world.draw("outliers", step, lambda rng: rng.random(shape))
        rewards = np.where(drawn < share, factor * rewards, rewards)
    return rewards


def advantages(
    setting: Setting, rewards: Floats, rollouts: Rollouts, state: State
) -> tuple[Floats, Floats | None]:
    """Return the advantages of rewards (S, P, G), and those of the lengths if they are a term."""
    seeds = len(rewards)
    labels = np.repeat(np.arange(seeds * len(TASKS)), rewards[0].size // len(TASKS))
    lengths = rollouts.lengths.reshape(-1)
    columns = {"reward": (rewards.reshape(-1), 1.0)}
    if setting.format_weight:
        # A stop at the last place counts as none.
        columns["format"] = ((lengths < LONGEST).astype(float), setting.format_weight)
    of_length = None
    if setting.length != "off":
        accuracy = rewards.reshape(-1)
        right = accuracy > 0
        length_reward = g2rpo.length_reward(
            lengths.astype(float), state.targets[labels], right=right if setting.gate else None
        )
        if setting.calibrated:
            calibrate(state, lengths, accuracy, labels)
        if setting.length == "term":
            of_length = g2rpo.gaussian_advantages(length_reward, setting.group_size, labels)
            of_length = of_length.reshape(rewards.shape)
        else:
            columns["length"] = (np.nan_to_num(length_reward), setting.length_weight)
    values, options = rewards.reshape(-1), dict(setting.options)
    if len(columns) > 1:
        parts, weights = zip(*columns.values(), strict=True)
        values, options["component_weights"] = np.stack(parts, axis=1), list(weights)
    found = estimate(setting, values, lengths, labels, options, state)
    return found.reshape(rewards.shape), of_length


def estimate(
    setting: Setting,
    values: Floats,
    lengths: Any,
    labels: Any,
    options: dict[str, Any],
    state: State,
) -> Floats:
    """Return advantages (N,) of rewards (N,) or (N, C), each seed's by itself."""
    if setting.estimator == "ema-grpo":  # it carries its state, and takes no components
        if weights := options.pop("component_weights", None):
            values = values @ np.asarray(weights)
        found, state.ema = g2rpo.ema_grpo_advantages(
            values, setting.group_size, labels, state.ema, **options
        )
        return found
    function = g2rpo.ESTIMATORS[setting.estimator]
    seeds = len(state.task_weights) if setting.estimator in OF_THE_BATCH else 1
    parts = []
    for rows in np.split(np.arange(len(values)), seeds):
        extra = {"lengths": lengths[rows]} if takes_lengths(function) else {}
        parts.append(function(values[rows], setting.group_size, labels[rows], **extra, **options))
    return np.concatenate(parts)


def calibrate(state: State, lengths: Any, accuracy: Floats, labels: Any) -> None:
    """Move the length targets, by responses that are right and not worse than their task's mean."""
    means = np.bincount(labels, accuracy) / np.bincount(labels)
    right: Flags = (accuracy > 0) & (accuracy >= means[labels])
    state.targets = g2rpo.calibrate_lengths(
        state.targets, lengths.astype(float), right, labels, min_samples=4
    )


def distances(advantages: Floats) -> Floats:
    """Return the W1 and W2 distances (S, K, 2) of advantages (S, K, M) to N(0, 1)."""
    labels = np.repeat(np.arange(advantages[..., 0].size), advantages.shape[-1])
    found = g2rpo.diagnostics.normality(advantages.reshape(-1), labels)
    return np.asarray([(each.w1, each.w2) for each in found.values()]).reshape(
        *advantages.shape[:2], 2
    )
