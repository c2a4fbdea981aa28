"""Sample responses in one compiled loop, and keep what the update needs to know of them.

The logits of sampling already hold the old log-probabilities of the surrogate and the exact
entropies, so no further forward pass is spent on either. A prompt is read once for all of its
responses, and a response token by token, with a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

import g2rpo
from g2rpo_jax.policy.decoder import Cache, Decoder, KeysValues, Params, Past
from g2rpo_jax.policy.reading import Prompts, first_position, read_prompts

from .policy_model import Policy


class Completions(NamedTuple):
    """G responses of at most T tokens to each of P prompts.

    Attributes
    ----------
    tokens : Array (P, G, T), int32
        Padded on the right.
    mask : Array (P, G, T), bool
        True at a response's tokens, its end token included.
    logprobs : Array (P, G, T), float32
        Log-probability in nats of each token under the distribution it came from; 0 at padding.
    entropies : Array (P, G, T), float32
        Exact entropy in nats of the distribution each token was drawn from; 0 at padding.
    ended : Array (P, G), bool
        False where the response was cut off at the length limit.
    """

    tokens: Array
    mask: Array
    logprobs: Array
    entropies: Array
    ended: Array

    def texts(self, policy: Policy) -> list[str]:
        """Return the decoded responses, P · G of them, without special tokens."""
        rows = np.asarray(self.tokens).reshape(-1, self.tokens.shape[-1])
        return [policy.tokenizer.decode(row) for row in rows.tolist()]

    def lengths(self) -> np.ndarray:
        """Return the lengths in tokens, (P · G,) int64."""
        return np.asarray(self.mask).sum(-1).reshape(-1)


def sample(
    policy: Policy,
    prompts: Prompts,
    key: Array,
    *,
    num_generations: int,
    max_completion_length: int,
    temperature: float = 1.0,
    limits: Sequence[int] | None = None,
) -> Completions:
    """Sample ``num_generations`` responses to every prompt.

    Parameters
    ----------
    policy : Policy
        Whose decoder is sampled.
    prompts : Prompts
        P prompts from :func:`~g2rpo_jax.trainer.prompts.encode_prompts`.
    key : Array (), PRNG key
        The responses follow from it, the weights and the prompts alone.
    num_generations : int
        Responses to each prompt.
    max_completion_length : int
        Longest response in tokens.
    temperature : float
        Of the sampling; 1 samples from the policy itself.
    limits : sequence of int, optional
        Longest response to each prompt in tokens, where it is shorter than the common one.

    Returns
    -------
    Completions
        On the devices of the prompts. The loop is compiled once for a shape.
    """
    if limits is None:
        limits = [max_completion_length] * prompts.tokens.shape[0]
    return sample_compiled(
        policy.definition,
        policy.params,
        policy.head_bias,
        prompts,
        policy.placement.divided(np.asarray(limits, np.int32)),
        key,
        eos_id=policy.tokenizer.eos_id,
        pad_id=policy.tokenizer.pad_id,
        num_generations=num_generations,
        max_completion_length=max_completion_length,
        temperature=temperature,
    )


class _Writing(NamedTuple):
    """Where the loop stands: at ``place``, with the states of the tokens before it."""

    place: Array
    states: Array
    layers: tuple[KeysValues, ...]
    written: Completions


@partial(
    jax.jit,
    static_argnames=(
        "definition",
        "eos_id",
        "pad_id",
        "num_generations",
        "max_completion_length",
        "temperature",
    ),
)
def sample_compiled(
    definition: nnx.GraphDef[Decoder],
    params: Params,
    head_bias: Array,
    prompts: Prompts,
    limits: Array,
    key: Array,
    *,
    eos_id: int,
    pad_id: int,
    num_generations: int,
    max_completion_length: int,
    temperature: float,
) -> Completions:
    """Do what :func:`sample` says."""
    model = nnx.merge(definition, params)
    last, past = read_prompts(model, prompts)
    shape = (prompts.tokens.shape[0], num_generations, max_completion_length)
    start = first_position(prompts)

    def is_writing(now: _Writing) -> Array:
        return jnp.any(~now.written.ended & (now.place < limits[:, None]))

    def write(now: _Writing) -> _Writing:
        logits = now.states @ model.head[...].T + head_bias[None, None]
        logits = logits / temperature
        drawn = jax.random.categorical(jax.random.fold_in(key, now.place), logits)
        goes_on = ~now.written.ended & (now.place < limits[:, None])
        written = _add(now.written, now.place, goes_on, logits, drawn, pad_id)
        written = written._replace(ended=written.ended | (goes_on & (drawn == eos_id)))
        tokens = written.tokens[:, :, now.place][..., None]
        positions = jnp.broadcast_to((start + now.place)[:, None, None], tokens.shape)
        visible = jnp.arange(max_completion_length) <= now.place
        states, layers = model(
            tokens,
            positions,
            jnp.broadcast_to(visible, (1, 1, 1, max_completion_length)),
            past,
            Cache(now.layers, now.place),
        )
        return _Writing(now.place + 1, states[:, :, 0], layers, written)

    first = _Writing(
        place=jnp.zeros((), jnp.int32),
        states=jnp.broadcast_to(last[:, None], (*shape[:2], last.shape[-1])),
        layers=_room(past, shape),
        written=_nothing(shape, pad_id),
    )
    return jax.lax.while_loop(is_writing, write, first).written


def _add(
    written: Completions, place: Array, goes_on: Array, logits: Array, drawn: Array, pad_id: int
) -> Completions:
    """Put the tokens drawn from (P, G, V) logits at their place, where a response goes on."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn[..., None], axis=-1)[..., 0]
    columns = {
        "tokens": jnp.where(goes_on, drawn.astype(jnp.int32), pad_id),
        "mask": goes_on,
        "logprobs": jnp.where(goes_on, chosen, 0.0),
        "entropies": jnp.where(goes_on, g2rpo.entropy_from_logits(logits), 0.0),
    }
    filled = {
        name: getattr(written, name).at[:, :, place].set(column) for name, column in columns.items()
    }
    return written._replace(**filled)


def _nothing(shape: tuple[int, int, int], pad_id: int) -> Completions:
    zeros = jnp.zeros(shape, jnp.float32)
    return Completions(
        tokens=jnp.full(shape, pad_id, jnp.int32),
        mask=jnp.zeros(shape, bool),
        logprobs=zeros,
        entropies=zeros,
        ended=jnp.zeros(shape[:2], bool),
    )


def _room(past: Past, shape: tuple[int, int, int]) -> tuple[KeysValues, ...]:
    """Return zeros for the keys and values of every layer."""
    return tuple(
        KeysValues(*(jnp.zeros((*shape, *part.shape[2:]), part.dtype) for part in layer))
        for layer in past.layers
    )
