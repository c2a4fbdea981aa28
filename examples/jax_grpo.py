"""G²RPO in plain JAX: a small decoder learns four text tasks, in one file and a few minutes.

    pip install "g2rpo[jax]"
    python examples/jax_grpo.py

1. Cold start: imitate answers with and without a thought, in the wrong proportion.
2. Reinforcement learning: sample groups of responses under `jit`, score them, compute Gaussian
   advantages, and step on the policy, length and entropy terms of `g2rpo_loss`.
3. A table of held-out reward and length, before and after.

Shapes: P prompts of L tokens (padded on the left), G responses of T tokens to each (padded on the
right), D the width.
"""

from __future__ import annotations

import argparse
import re
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

import g2rpo
from g2rpo.rewards import score
from g2rpo_jax import logprobs_and_entropy
from g2rpo_trainer.tasks import TEXT_TASKS

Params: TypeAlias = dict[str, Any]

TASKS = list(TEXT_TASKS.values())
LEVEL = 2  # difficulty of the items, 1 to 3
P, G, L, T = 24, 8, 72, 40
D, LAYERS, HEADS, HIDDEN = 128, 3, 4, 256
PAD, END, ASK = 0, 1, 2
PIECE = re.compile(r"</?think>|</?answer>| ?[A-Z]?[a-z]{2,}|.", re.DOTALL)

# Share of imitated answers with a thought, chosen against the length targets.
THINKS = (0.3, 0.3, 0.3, 0.7)
# In tokens, by task: sorting gains nothing from a thought, the other three do.
LENGTH_TARGETS = ((6, 16, 36, 40), (12, 24, 36, 40), (6, 16, 30, 36), (0, 0, 15, 24))
ENTROPY_LOW, ENTROPY_HIGH = jnp.full(len(TASKS), 0.05), jnp.full(len(TASKS), 0.6)  # nats
LEARNING_RATE, LENGTH_WEIGHT, ENTROPY_WEIGHT = 3e-4, 1.0, 0.02


def draw(seed: int, start: int, count: int, split: Any = "train") -> list[Any]:
    """Return items of the tasks in turn."""
    rows = range(start, start + count)
    return [TASKS[row % len(TASKS)].item(seed, row, split=split, level=LEVEL) for row in rows]


def answer(item: Any, thinks: bool) -> str:
    """Return a right response, with or without a thought."""
    thought = item.worked if thinks else ""
    return f"<think>{thought}</think><answer>{item.record.answer}</answer>"


TEXTS = [text for item in draw(0, 0, 800) for text in (item.record.problem, answer(item, True))]
PIECES = ["<pad>", "<end>", "<ask>", *sorted({p for text in TEXTS for p in PIECE.findall(text)})]
IDS = {piece: number for number, piece in enumerate(PIECES)}


def encode(text: str) -> list[int]:
    """Return token ids."""
    return [IDS[piece] for piece in PIECE.findall(text)]


def decode(ids: Any) -> str:
    """Return the text of token ids, special ones left out."""
    return "".join(PIECES[token] for token in ids if token > ASK)


def encode_prompts(items: list[Any]) -> np.ndarray:
    """Return the prompts' tokens [P, L]."""
    tokens = np.full((len(items), L), PAD, np.int32)
    for row, item in enumerate(items):
        ids = [*encode(item.record.problem), ASK]
        tokens[row, L - len(ids) :] = ids
    return tokens


def imitation_batch(rng: Any, seed: int, number: int) -> tuple[Any, Any]:
    """Return prompts [64, L] and right responses [64, 1, T], a share `THINKS` with a thought."""
    items = draw(seed, number * 64, 64)
    tokens = np.full((64, 1, T), PAD, np.int32)
    for row, item in enumerate(items):
        ids = [*encode(answer(item, rng.random() < THINKS[row % len(TASKS)])), END][:T]
        tokens[row, 0, : len(ids)] = ids
    return encode_prompts(items), tokens


def init_policy(key: jax.Array, vocabulary: int) -> Params:
    """Return the weights of a decoder with gated feed-forward layers."""
    shapes = {"attention": (D, 3 * D), "mix": (D, D), "up": (D, 2 * HIDDEN), "down": (HIDDEN, D)}
    keys = iter(jax.random.split(key, 2 + LAYERS * len(shapes)))

    def matrix(rows: int, columns: int) -> jax.Array:
        return rows**-0.5 * jax.random.normal(next(keys), (rows, columns))

    blocks = [{name: matrix(*shape) for name, shape in shapes.items()} for _ in range(LAYERS)]
    return {"embedding": matrix(vocabulary, D), "head": matrix(vocabulary, D), "blocks": blocks}


def normalise(states: jax.Array) -> jax.Array:
    """Divide by the root mean square."""
    return states * jax.lax.rsqrt(jnp.mean(states**2, axis=-1, keepdims=True) + 1e-6)


def rotate(vectors: jax.Array, positions: jax.Array) -> jax.Array:
    """Apply rotary position embeddings to [P, G, t, heads, d]."""
    half = vectors.shape[-1] // 2
    angles = positions[..., None, None] * 10_000.0 ** (-jnp.arange(half) / half)
    turn = jnp.exp(1j * angles) * jax.lax.complex(vectors[..., :half], vectors[..., half:])
    return jnp.concatenate([turn.real, turn.imag], axis=-1)


def forward(params: Params, tokens: Any, real: Any, cache: Any, place: Any) -> tuple[Any, Any]:
    """Return hidden states [P, G, t, D] of tokens [P, G, t], and the updated KV cache.

    The cache [P, G, L + T, heads, d] of each layer takes their keys and values from `place` on;
    `real` [P, L + T] is False at the padding of the prompts.
    """
    own = place + jnp.arange(tokens.shape[2])
    visible = (real[:, None] & (jnp.arange(L + T) <= own[:, None]))[:, None, None]
    positions = (jnp.cumsum(real, axis=1) - 1)[:, None, own]
    states, filled = params["embedding"][tokens], []
    for block, rooms in zip(params["blocks"], cache, strict=True):
        parts = (normalise(states) @ block["attention"]).reshape(*tokens.shape, 3, HEADS, -1)
        queries, keys = (rotate(parts[..., part, :, :], positions) for part in (0, 1))
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(room, new, place, axis=2)
            for room, new in zip(rooms, (keys, parts[..., 2, :, :]), strict=True)
        )
        scores = jnp.einsum("pgthd,pgshd->pghts", queries, keys) * keys.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(visible, scores, -1e30))
        mixed = jnp.einsum("pghts,pgshd->pgthd", weights, values).reshape(states.shape)
        states += mixed @ block["mix"]
        gate, up = jnp.split(normalise(states) @ block["up"], 2, axis=-1)
        states += (jax.nn.silu(gate) * up) @ block["down"]
        filled.append((keys, values))
    return normalise(states), filled


def read_prompts(params: Params, prompts: jax.Array, group: int) -> tuple[Any, Any, Any]:
    """Prefill [P, L]; return the last hidden state [P, G, D], `real` and cache for a group."""
    real = jnp.concatenate([prompts != PAD, jnp.ones((len(prompts), T), bool)], axis=1)
    room = jnp.zeros((len(prompts), 1, L + T, HEADS, D // HEADS))
    hidden, cache = forward(params, prompts[:, None], real, [(room, room)] * LAYERS, 0)
    last, cache = jax.tree.map(lambda x: jnp.repeat(x, group, axis=1), (hidden[:, :, -1], cache))
    return last, cache, real


def response_states(params: Params, prompts: jax.Array, tokens: jax.Array) -> jax.Array:
    """Return the hidden states [P, G, T, D] that predict the tokens [P, G, T] of responses."""
    last, cache, real = read_prompts(params, prompts, tokens.shape[1])
    hidden, _ = forward(params, tokens, real, cache, L)
    return jnp.concatenate([last[:, :, None], hidden[:, :, :-1]], axis=2)


@partial(jax.jit, static_argnames="group")
def sample(params: Params, prompts: jax.Array, key: jax.Array, group: int = G) -> Any:
    """Return sampled responses: tokens, mask, log-probabilities in nats, all [P, group, T]."""
    last, cache, real = read_prompts(params, prompts, group)

    def write(carry: Any, place: jax.Array) -> tuple[Any, Any]:
        hidden, cache, is_open = carry
        logits = hidden @ params["head"].T
        drawn = jax.random.categorical(jax.random.fold_in(key, place), logits)
        logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn[..., None], -1)[..., 0]
        tokens = jnp.where(is_open, drawn, PAD)
        hidden, cache = forward(params, tokens[..., None], real, cache, place)
        return (hidden[:, :, 0], cache, is_open & (drawn != END)), (tokens, is_open, logprobs)

    carry = (last, cache, jnp.ones(last.shape[:2], bool))
    _, written = jax.lax.scan(write, carry, L + jnp.arange(T))
    return tuple(jnp.moveaxis(values, 0, -1) for values in written)


def score_all(items: list[Any], tokens: jax.Array) -> np.ndarray:
    """Return rewards and accuracies [2, P·G] of the responses."""
    pairs = zip(items, np.asarray(tokens), strict=True)
    scores = [score(item.record.as_row(), decode(row)) for item, rows in pairs for row in rows]
    return np.asarray([each[:2] for each in scores], np.float32).T


def imitation_loss(params: Params, prompts: jax.Array, tokens: jax.Array) -> tuple[jax.Array, Any]:
    """Return the cross-entropy of the responses [P, 1, T] in nats, with equal weights of tasks."""
    hidden, labels = response_states(params, prompts, tokens)[:, 0], tokens[:, 0]
    logprobs, _ = logprobs_and_entropy(hidden, params["head"], labels)
    tasks = jnp.arange(len(prompts)) % len(TASKS)
    return -g2rpo.task_means(logprobs, labels != PAD, tasks, len(TASKS))[0].mean(), {}


def objective(
    params: Params, prompts: Any, rollouts: Any, rewards: Any, length_rewards: Any, tasks: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return G²RPO's loss and its terms; rewards, length rewards and tasks are [P·G]."""
    tokens, mask, old_logprobs = (values.reshape(-1, T) for values in rollouts)
    hidden = response_states(params, prompts, rollouts[0]).reshape(-1, T, D)
    logprobs, entropies = logprobs_and_entropy(hidden, params["head"], tokens)
    groups = jnp.repeat(jnp.arange(P), G)
    terms, metrics = g2rpo.g2rpo_loss(
        logprobs,
        old_logprobs,
        g2rpo.gaussian_advantages(rewards, groups, tasks),
        mask,
        entropies=entropies,
        tasks=tasks,
        entropy_low=ENTROPY_LOW,
        entropy_high=ENTROPY_HIGH,
        entropy_weight=ENTROPY_WEIGHT,
        length_advantages=g2rpo.gaussian_advantages(length_rewards, groups, tasks),
        length_weight=LENGTH_WEIGHT,
    )
    return terms.total, {**terms._asdict(), "mean entropy": metrics["entropy"]}


def make_step(loss: Any, params: Params, optimizer: Any) -> tuple[Any, Any]:
    """Return the optimiser's state, and a compiled step for `loss`."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optimizer)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Params, state: Any, *batch: Any) -> tuple[Params, Any, Any]:
        value, gradient = jax.value_and_grad(loss, has_aux=True)(params, *batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    return optimizer.init(params), step


def cold_start(seed: int, steps: int) -> Params:
    """Return a policy after `steps` batches of imitation."""
    params = init_policy(jax.random.key(seed), len(PIECES))
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 20, int(1.3 * steps))
    muon = optax.contrib.muon(schedule, adam_b2=0.98, consistent_rms=0.2)
    (state, step), rng = make_step(imitation_loss, params, muon), np.random.default_rng(seed)
    for number in range(steps):
        batch = imitation_batch(rng, seed, number)
        params, state, (loss, _) = step(params, state, *batch)
        if number % 100 == 0 or number == steps - 1:
            print(f"imitation {number:4d}: loss {loss:.3f}", flush=True)
    return params


def train(params: Params, seed: int, steps: int) -> Params:
    """Return the policy after `steps` steps of reinforcement learning."""
    adamw = optax.adamw(optax.linear_schedule(LEARNING_RATE, 0.0, steps))
    state, step = make_step(objective, params, adamw)
    tasks = np.repeat(np.arange(P, dtype=np.int32) % len(TASKS), G)
    targets = np.asarray(LENGTH_TARGETS, np.float32)[tasks]
    for number in range(steps):
        items = draw(seed + 1, number * P, P)
        prompts, key = encode_prompts(items), jax.random.key(seed)
        rollouts = sample(params, prompts, jax.random.fold_in(key, number))
        rewards, accuracies = score_all(items, rollouts[0])
        # Only right answers get a length reward: half an answer is short too.
        lengths = np.asarray(rollouts[1], np.float32).sum(-1).reshape(-1)
        length_rewards = g2rpo.length_reward(lengths, targets) * (accuracies > 0)
        batch = (prompts, rollouts, rewards, length_rewards, tasks)
        params, state, (_, metrics) = step(params, state, *batch)
        if number % 20 == 0 or number == steps - 1:
            values = "  ".join(f"{name} {value:+.3f}" for name, value in metrics.items())
            print(f"step {number:4d}: reward {rewards.mean():.3f}  {values}", flush=True)
    return params


def evaluate(params: Params) -> np.ndarray:
    """Return mean held-out reward and length in tokens of each task [2, tasks]."""
    items = draw(0, 0, 256, split="heldout")
    tokens, mask, _ = sample(params, encode_prompts(items), jax.random.key(0), group=4)
    values = np.stack([score_all(items, tokens)[0], mask.sum(-1).reshape(-1)])
    return values.reshape(2, -1, len(TASKS), 4).mean(axis=(1, 3))


def print_table(before: np.ndarray, after: np.ndarray) -> None:
    """Show each task before and after."""
    print(f"\n{'task':12}{'reward':>8}{'after':>8}{'change':>8}{'tokens':>8}{'after':>8}")
    for task, (old, tokens), (new, now) in zip(TASKS, before.T, after.T, strict=True):
        print(f"{task.name:12}{old:8.3f}{new:8.3f}{new - old:+8.3f}{tokens:8.1f}{now:8.1f}")


def main() -> None:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cold-start-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    params = cold_start(options.seed, options.cold_start_steps)
    before = evaluate(params)
    params = train(params, options.seed, options.steps)
    print_table(before, evaluate(params))


if __name__ == "__main__":
    main()
