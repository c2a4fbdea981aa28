"""Make the embedded policy: supervised training on the built-in text tasks, up to middling skill.

    python -m g2rpo_jax.policy.cold_start --output FOLDER

First the policy imitates responses, half of which think aloud while the other half answer at once.
Then it gets into the wrong habits: it answers at once where thinking helps, and thinks aloud where
it only costs. Which style serves which task is left to reinforcement learning to find out.

It takes about six minutes on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import nnx
from jax import Array

import g2rpo
from g2rpo.tasks import TEXT_TASKS, Item

from .decoder import Decoder, DecoderConfig, Params
from .files import save_sizes, save_weights
from .reading import Prompts, next_token_states, pad_left
from .tokenizer import Tokenizer
from .vocabulary import build_tokenizer

SKILL_STEPS = 600
HABIT_STEPS = 100
PROMPTS, RESPONSES = 32, 2
LEARNING_RATE = 3e-3
HABIT_LEARNING_RATE = 5e-4
PROMPT_TOKENS, RESPONSE_TOKENS = 64, 40

# How often each task's examples think aloud.
THINKS = dict.fromkeys(TEXT_TASKS, 0.5)
HABIT_THINKS = {task: 0.75 if task == "sorting" else 0.2 for task in TEXT_TASKS}

# The learning rate of the first phase would reach 0 only here: what is still undecided when the
# phase ends early is what reinforcement learning gets to decide.
SKILL_DECAY_STEPS = 1600


class Examples(NamedTuple):
    """Prompts (P, L), responses to imitate (P, G, T) and where they are, tasks (P · G,)."""

    prompts: Prompts
    tokens: Array
    mask: Array
    tasks: Array


def main() -> None:
    """Train, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--skill-steps", type=_count, default=SKILL_STEPS)
    parser.add_argument("--habit-steps", type=_count, default=HABIT_STEPS)
    parser.add_argument("--seed", type=_count, default=0)
    arguments = parser.parse_args()
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output must be a folder that can be written ({error})")

    tokenizer = build_tokenizer()
    config = DecoderConfig(vocab_size=len(tokenizer))
    definition, params = nnx.split(Decoder(config, rngs=nnx.Rngs(arguments.seed)))
    imitate_styles = partial(imitate, definition, tokenizer=tokenizer)
    params = imitate_styles(
        params,
        steps=arguments.skill_steps,
        decay_steps=max(arguments.skill_steps, SKILL_DECAY_STEPS),
        learning_rate=LEARNING_RATE,
        thinks=THINKS,
        seed=arguments.seed,
    )
    params = imitate_styles(
        params,
        steps=arguments.habit_steps,
        decay_steps=arguments.habit_steps,
        learning_rate=HABIT_LEARNING_RATE,
        thinks=HABIT_THINKS,
        seed=arguments.seed + 1,
    )
    save_sizes(arguments.output, config, tokenizer)
    save_weights(arguments.output, params)
    print(f"wrote {arguments.output}")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 or more, got {text!r}")
    return int(text)


def imitate(
    definition: nnx.GraphDef[Decoder],
    params: Params,
    *,
    tokenizer: Tokenizer,
    steps: int,
    decay_steps: int,
    learning_rate: float,
    thinks: Mapping[str, float],
    seed: int,
) -> Params:
    """Minimise the imitation loss over ``steps``, and return the new weights."""
    if not steps:
        return params
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, decay_steps // 20, decay_steps
    )
    # After 350 steps Muon stood at a loss of .45, AdamW at .59.
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            schedule,
            weight_decay=0.01,
            adam_b2=0.98,
            adam_weight_decay=0.01,
            # Updates of the size that AdamW's have.
            consistent_rms=0.2,
        ),
    )

    @jax.jit
    def step(params: Params, state: Any, examples: Examples) -> tuple[Params, Any, Array]:
        loss, gradient = jax.value_and_grad(imitation_loss, argnums=1)(definition, params, examples)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, started = optimizer.init(params), time.monotonic()
    for number in range(steps):
        params, state, loss = step(params, state, draw(tokenizer, thinks, seed, number))
        if number % 100 == 0 or number == steps - 1:
            seconds = time.monotonic() - started
            print(f"step {number}  loss {float(loss):.3f}  {seconds:.0f} s", flush=True)
    return params


def imitation_loss(definition: nnx.GraphDef[Decoder], params: Params, examples: Examples) -> Array:
    """Return the cross-entropy of the responses in nats, a mean over tokens, then over tasks.

    A mean over all tokens at once would leave the learning to the tasks with long answers, and one
    over each response's tokens first would prefer the short style.
    """
    model = nnx.merge(definition, params)
    states = next_token_states(model, examples.prompts, examples.tokens)
    logits = states @ model.head[...].T
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, examples.tokens)
    rows = (losses.size // RESPONSE_TOKENS, RESPONSE_TOKENS)
    means, _ = g2rpo.task_means(
        losses.reshape(rows), examples.mask.reshape(rows), examples.tasks, len(TEXT_TASKS)
    )
    return means.mean()


def draw(tokenizer: Tokenizer, thinks: Mapping[str, float], seed: int, step: int) -> Examples:
    """Return a batch of training items with responses, the tasks in turn."""
    rng = np.random.default_rng([seed, step])
    tasks = list(TEXT_TASKS.values())
    rows = range(step * PROMPTS, (step + 1) * PROMPTS)
    items = [tasks[row % len(tasks)].item(seed, row) for row in rows]
    tokens = np.full((PROMPTS, RESPONSES, RESPONSE_TOKENS), tokenizer.pad_id, np.int32)
    for row, column in np.ndindex(PROMPTS, RESPONSES):
        aloud = rng.random() < thinks[items[row].record["task_type"]]
        ids = [*tokenizer.encode(response(items[row], thinks=aloud)), tokenizer.eos_id]
        tokens[row, column, : len(ids)] = ids
    prompts = [tokenizer.encode_prompt(item.record["problem"]) for item in items]
    return Examples(
        prompts=pad_left(prompts, tokenizer.pad_id, PROMPT_TOKENS),
        tokens=jnp.asarray(tokens),
        mask=jnp.asarray(tokens != tokenizer.pad_id),
        tasks=jnp.repeat(jnp.asarray(rows, jnp.int32) % len(tasks), RESPONSES),
    )


def response(item: Item[Any], *, thinks: bool) -> str:
    """Return the response to imitate, thinking aloud or answering at once."""
    thought = item.worked if thinks else ""
    return f"<think>{thought}</think><answer>{item.record['answer']}</answer>"


if __name__ == "__main__":
    main()
