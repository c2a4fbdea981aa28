"""Load a policy: the decoder, its weights, and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp
from flax import nnx
from jax import Array

from g2rpo.run.errors import RunError
from g2rpo_jax.policy import policy_path
from g2rpo_jax.policy.decoder import Decoder, DecoderConfig, Params
from g2rpo_jax.policy.files import abstract_decoder, read_sizes, read_weights
from g2rpo_jax.policy.questions import MAX_PROMPT_LENGTH
from g2rpo_jax.policy.tokenizer import Tokenizer

from .checkpoint import holds_weights, restore_weights
from .device import Placement

BUILTIN = "builtin"


@dataclass(frozen=True)
class Policy:
    """A decoder that answers questions, with what is needed to talk to it.

    Attributes
    ----------
    definition : nnx.GraphDef
        The decoder without its weights; what is compiled depends on it.
    params : Params
        The weights, on every device.
    head_bias : Array (V,), float32
        −inf at tokens without a meaning inside a response (padding, roles), else 0. It is added
        before every softmax, in sampling and in training alike.
    tokenizer : Tokenizer
    config : DecoderConfig
    placement : Placement
        Where all of it is.
    max_prompt_length : int
        Most tokens that a prompt may have.
    """

    definition: nnx.GraphDef[Decoder]
    params: Params
    head_bias: Array
    tokenizer: Tokenizer
    config: DecoderConfig
    placement: Placement
    max_prompt_length: int = MAX_PROMPT_LENGTH

    def with_params(self, params: Params) -> Policy:
        """Return the policy with other weights."""
        return replace(self, params=params)


def load_policy(name: str, placement: Placement, *, max_prompt_length: int | None = None) -> Policy:
    """Load a policy from the package or a folder.

    Parameters
    ----------
    name : str
        ``"builtin"`` for the embedded policy, else a folder: a checkpoint of a run, or what
        ``g2rpo_jax.policy.cold_start`` writes.
    placement : Placement
        Where it goes.
    max_prompt_length : int, optional
        Most tokens that a prompt may have, by default 1,024.

    Returns
    -------
    Policy

    Raises
    ------
    RunError
        If there is no such folder, or something else in it.
    """
    folder = policy_path() if name == BUILTIN else Path(name)
    try:
        config, tokenizer = read_sizes(folder)
        definition, wanted = abstract_decoder(config)
        if holds_weights(folder):
            params = restore_weights(folder, wanted)
        else:
            params = read_weights(folder, config)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"--model is {name!r}, which cannot be loaded; with the engine jax it must be "
            f"'builtin' or a checkpoint of a run with it ({reason})"
        ) from error
    policy = make_policy(definition, params, tokenizer, config, placement)
    return replace(policy, max_prompt_length=max_prompt_length or MAX_PROMPT_LENGTH)


def make_policy(
    definition: nnx.GraphDef[Decoder],
    params: Params,
    tokenizer: Tokenizer,
    config: DecoderConfig,
    placement: Placement,
) -> Policy:
    """Bind a decoder, its weights and its tokenizer."""
    banned = jnp.asarray(tokenizer.banned_ids)
    bias = jnp.zeros(len(tokenizer), jnp.float32).at[banned].set(-jnp.inf)
    return Policy(
        definition=definition,
        params=placement.everywhere(params),
        head_bias=placement.everywhere(bias),
        tokenizer=tokenizer,
        config=config,
        placement=placement,
    )
