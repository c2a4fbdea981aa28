"""G²RPO in tunix: a small Qwen3 of tunix learns four text tasks, in a few minutes.

    pip install "g2rpo[tunix,rewards]"
    python examples/tunix_grpo.py

The policy first imitates answers, with the wrong mixture of worked and unworked ones (text and
tasks are those of `jax_grpo.py` beside this file). Then `G2RPOLearner` trains it: what differs from
tunix's own GRPO is the column `task` of the dataset, `G2RPOConfig` and the learner's name.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import nnx
from jax.sharding import AxisType
from jax_grpo import (
    ASK,
    END,
    PAD,
    PIECES,
    TASKS,
    decode,
    draw,
    encode,
    imitation_batch,
    print_table,
)
from tunix.models.qwen3 import model as qwen3
from tunix.rl.rl_cluster import ClusterConfig, Mode, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig

import g2rpo
from g2rpo.rewards import score
from g2rpo_tunix import G2RPOConfig, G2RPOLearner

P, G, L, T = 24, 8, 72, 40  # prompts, responses to each, longest prompt and response in tokens


class Tokenizer:
    """The methods that tunix calls; a text is encoded as a prompt."""

    def encode(self, text: str, **_: Any) -> list[int]:
        """Return the prompt tokens of a question."""
        return [*encode(text), ASK]

    def decode(self, ids: Any, **_: Any) -> str:
        """Return the text of a response."""
        return decode(ids)

    def bos_id(self) -> None:
        """Return None: prompts have no start token."""

    def eos_id(self) -> int:
        """Return the end token."""
        return END

    def pad_id(self) -> int:
        """Return the padding token."""
        return PAD


def make_model(vocabulary: int, seed: int) -> qwen3.Qwen3:
    """Return a random Qwen3 of half a million parameters."""
    config = qwen3.ModelConfig(
        num_layers=3,
        vocab_size=vocabulary,
        embed_dim=128,
        hidden_dim=256,
        num_heads=4,
        head_dim=32,
        num_kv_heads=4,
        rope_theta=10_000,
        norm_eps=1e-6,
        use_tied_embedding=False,
    )
    return qwen3.Qwen3(config, rngs=nnx.Rngs(seed))


def cold_start(model: qwen3.Qwen3, seed: int, steps: int) -> None:
    """Train on `steps` batches of answers, in place."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 20, int(1.3 * steps))
    muon = optax.contrib.muon(schedule, adam_b2=0.98, consistent_rms=0.2)
    chain = optax.chain(optax.clip_by_global_norm(1.0), muon)
    optimizer = nnx.Optimizer(model, chain, wrt=nnx.Param)

    def loss(model: qwen3.Qwen3, tokens: jax.Array, answered: jax.Array) -> jax.Array:
        mask = tokens != PAD
        positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        causal = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
        logits, _ = model(tokens, positions, None, causal & mask[:, None])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
        tasks = jnp.arange(len(tokens)) % len(TASKS)
        return g2rpo.task_means(losses, answered[:, 1:], tasks, len(TASKS))[0].mean()

    @nnx.jit
    def step(model: qwen3.Qwen3, optimizer: Any, tokens: Any, answered: Any) -> jax.Array:
        value, gradient = nnx.value_and_grad(loss)(model, tokens, answered)
        optimizer.update(model, gradient)
        return value

    rng = np.random.default_rng(seed)
    for number in range(steps):
        prompts, answers = imitation_batch(rng, seed, number)
        tokens = np.concatenate([prompts, answers[:, 0]], axis=1)
        answered = (tokens != PAD) & (np.arange(tokens.shape[1]) >= prompts.shape[1])
        value = step(model, optimizer, tokens, answered)
        if number % 100 == 0 or number == steps - 1:
            print(f"imitation {number:4d}: loss {value:.3f}", flush=True)


class Dataset:
    """Batches of columns for tunix, all NumPy arrays; `row` is the index of the item."""

    def __init__(self, seed: int, steps: int) -> None:
        self.seed, self.steps = seed, steps

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for number in range(self.steps):
            items = draw(self.seed, number * P, P)
            yield {
                "prompts": np.asarray([item.record.problem for item in items], dtype=object),
                "task": np.asarray([item.record.task for item in items]),
                "row": np.arange(number * P, (number + 1) * P),
            }

    def accuracy(self, completions: list[str], row: Any, **_: Any) -> list[float]:
        """Return the values of a reward function, by the task of each row."""
        return [
            score(draw(self.seed, int(number), 1)[0].record.as_row(), text).accuracy
            for number, text in zip(row, completions, strict=True)
        ]

    def layout(self, completions: list[str], row: Any, **_: Any) -> list[float]:
        """Return the format reward: 1 for one thought and one answer, else 0."""
        return [
            score(draw(self.seed, int(number), 1)[0].record.as_row(), text).format
            for number, text in zip(row, completions, strict=True)
        ]


def make_cluster(model: qwen3.Qwen3, steps: int, rate: float) -> RLCluster:
    """Return tunix's cluster on one device: actor and vanilla rollout."""
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)
    chain = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(rate, 0.0, steps))
    )
    config = ClusterConfig(
        role_to_mesh=dict.fromkeys((Role.ACTOR, Role.ROLLOUT, Role.REFERENCE), mesh),
        rollout_engine="vanilla",
        training_config=RLTrainingConfig(
            eval_every_n_steps=steps,
            max_steps=steps,
            mini_batch_size=P,
            train_micro_batch_size=P,
            rollout_micro_batch_size=P,
            actor_optimizer=chain,
        ),
        rollout_config=RolloutConfig(
            max_tokens_to_generate=T,
            max_prompt_length=L,
            kv_cache_size=L + T,
            temperature=1.0,
            top_p=1.0,
        ),
    )
    return RLCluster(actor=model, reference=None, tokenizer=Tokenizer(), cluster_config=config)


def make_learner(cluster: RLCluster, dataset: Dataset, seed: int) -> G2RPOLearner:
    """Return the learner: the four tasks, their length targets and entropy bounds."""
    config = G2RPOConfig(
        tasks=[task.name for task in TASKS],
        num_generations=G,
        reward_weights=[0.9, 0.1],
        entropy_bounds=(0.05, 0.6),  # nats
        length_mode="term",
        length_weight=0.5,
        length_targets={  # tokens
            "arithmetic": (6, 16, 36, 40),
            "box": (12, 24, 36, 40),
            "bars": (6, 16, 30, 36),
            "sorting": (0, 0, 15, 24),
        },
        length_only_right="accuracy",
        sampling_seed=seed,
    )
    return G2RPOLearner(cluster, config, [dataset.accuracy, dataset.layout])


def evaluate(cluster: RLCluster, prompts: int = 256, group: int = 4) -> np.ndarray:
    """Return mean held-out reward and length in tokens of each task [2, tasks]."""
    items = [item for item in draw(0, 0, prompts, split="heldout") for _ in range(group)]
    cluster.get_rollout_config(mode=Mode.EVAL).seed = 0
    output = cluster.generate([item.record.problem for item in items], mode=Mode.EVAL)
    pairs = zip(items, output.text, strict=True)
    rewards = [score(item.record.as_row(), text).reward for item, text in pairs]
    lengths = [np.count_nonzero(np.asarray(tokens) != PAD) for tokens in output.tokens]
    return np.reshape([rewards, lengths], (2, -1, len(TASKS), group)).mean(axis=(1, 3))


def main() -> None:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cold-start-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    options = parser.parse_args()
    model = make_model(len(PIECES), options.seed)
    cold_start(model, options.seed, options.cold_start_steps)
    cluster = make_cluster(model, options.steps, options.learning_rate)
    dataset = Dataset(options.seed + 1, options.steps)
    learner = make_learner(cluster, dataset, options.seed)
    before = evaluate(cluster)
    learner.train(dataset)
    print_table(before, evaluate(cluster))


if __name__ == "__main__":
    main()
