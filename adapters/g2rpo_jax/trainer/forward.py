"""The differentiable pass: what the policy says of the tokens of given responses."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from g2rpo_jax import logprobs_and_entropy
from g2rpo_jax.policy.decoder import Decoder, Params
from g2rpo_jax.policy.reading import Prompts, next_token_states

_IGNORED = -100


@partial(jax.jit, static_argnames=("definition", "temperature"))
def completion_logprobs(
    definition: nnx.GraphDef[Decoder],
    params: Params,
    head_bias: Array,
    prompts: Prompts,
    tokens: Array,
    mask: Array,
    *,
    temperature: float = 1.0,
) -> tuple[Array, Array]:
    """Return log-probability and entropy of every token of (P, G) responses.

    Parameters
    ----------
    definition, params, head_bias
        Of the policy.
    prompts : Prompts
        P prompts.
    tokens, mask : Array (P, G, T)
        The responses, padded on the right, and True at their tokens.
    temperature : float
        The one that the responses were sampled at.

    Returns
    -------
    logprobs, entropies : Array (P, G, T), float32
        In nats, differentiable; 0 where the mask is False.
    """
    model = nnx.merge(definition, params)
    states = next_token_states(model, prompts, tokens)
    labels = jnp.where(mask, tokens, _IGNORED)
    return logprobs_and_entropy(
        states,
        model.head[...],
        labels,
        bias=head_bias,
        temperature=temperature,
        ignore_index=_IGNORED,
    )
