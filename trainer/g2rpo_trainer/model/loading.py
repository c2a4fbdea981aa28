"""Load a policy onto its device, with what is trained of it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch

from g2rpo_trainer.config import Model, TrainConfig
from g2rpo_trainer.errors import RunError, memory_advice

from ..block_attention import blocks_obstacle, use_blocks, wants_blocks
from ..device import free_memory, model_on, resolve_device
from ..distributed import Ranks
from ..model_shape import model_shape, wants_checkpointing
from ..sharding import shard, wants_sharding
from .adapting import (
    attach_adapter,
    enable_gradient_checkpointing,
    freeze_vision,
)
from .chat_template import missing_opening
from .policy_model import Policy, make_policy
from .reading import generation_settings, read_parts, source_of

_logger = logging.getLogger(__name__)


def load_run_policy(
    config: TrainConfig,
    name: str | None = None,
    *,
    ranks: Ranks = Ranks(),
) -> Policy:
    """Load the policy of a run.

    Parameters
    ----------
    config : TrainConfig
        Configuration; its model and rollout sections.
    name : str, optional
        Model to load in place of ``config.model.name``, such as a checkpoint of the run.
    ranks : Ranks
        Ranks that load the policy together.

    Raises
    ------
    RunError
        As :func:`load_policy`, or if nothing can end a response.
    """
    rollout = config.rollout
    with ranks.raise_on_all_ranks():
        device = resolve_device(config.model.device)
    policy = load_policy(
        name or config.model.name,
        device=device,
        model=config.model,
        max_prompt_length=rollout.max_prompt_length,
        max_completion_length=rollout.max_completion_length,
        micro_batch_tokens=config.optimization.micro_batch_tokens,
        ranks=ranks,
    )
    with ranks.raise_on_all_ranks():
        _check_ends(policy, rollout.stop)
    # The reference of a run is loaded without a name, and has the same template.
    if name is not None and ranks.is_main:
        _warn_of_missing_opening(policy)
    return policy


def load_policy(
    name: str,
    *,
    device: torch.device | str,
    model: Model = Model(),
    max_prompt_length: int | None = None,
    max_completion_length: int = 0,
    micro_batch_tokens: int = 0,
    ranks: Ranks = Ranks(),
) -> Policy:
    """Load a policy from the package, a folder or the hub.

    Parameters
    ----------
    name : str
        ``"builtin"`` for the embedded policy, else a folder or a hub id of a model that
        ``AutoModelForImageTextToText`` or ``AutoModelForCausalLM`` reads, or a checkpoint.
    device : torch.device or str
        Device of the model.
    model : Model
        Section ``model`` of the configuration; its ``name`` and ``device`` are ignored.
    max_prompt_length : int, optional
        Longest prompt in tokens; by default the model's context without the response.
    max_completion_length : int
        Longest response in tokens.
    micro_batch_tokens : int
        Tokens of a pass of the update, by which gradient checkpointing is chosen.
    ranks : Ranks
        Ranks that load the policy together.

    Returns
    -------
    Policy
        Without shortcuts: see :func:`g2rpo_trainer.shortcuts.choose_shortcuts`. The model is in
        evaluation mode: sampling and updates must see the same function, so dropout stays off.

    Raises
    ------
    RunError
        If there is no such model, it is of another kind, or something about it is missing.

    Examples
    --------
    >>> policy = load_policy("builtin", device="cpu")
    >>> policy.takes_images, policy.takes_videos, policy.has_adapter
    (True, False, False)
    """
    source = source_of(name, model)
    device = torch.device(device)
    model = model_on(model, device)
    is_sharded = wants_sharding(model, ranks.size)
    remedies = ("model.dtype: bfloat16", "a smaller model")
    with ranks.raise_on_all_ranks(), memory_advice("loading the model", *remedies):
        loaded, processor = read_parts(name, model)
        attach_adapter(loaded, model, source.adapter)
        freeze_vision(loaded, model)
        # A sharded model may be too large for any of the devices.
        loaded = (loaded if is_sharded else loaded.to(device)).eval()
        chosen = model.gradient_checkpointing
        if chosen == "auto":
            parts = ranks.size if is_sharded else 1
            free = free_memory(device)
            chosen = wants_checkpointing(model_shape(loaded), micro_batch_tokens, free, parts)
        if chosen:
            enable_gradient_checkpointing(loaded)
        longest = _longest_prompt(loaded, max_prompt_length, max_completion_length)
    ranks.require_same_weights(loaded)
    if is_sharded:
        shard(loaded, device, ranks.size)
    policy = make_policy(
        loaded,
        processor,
        name=name,
        max_prompt_length=longest,
    )
    return replace(policy, generation_settings=generation_settings(source.weights))


def with_block_masks(policy: Policy, model: Model) -> Policy:
    """Return a policy whose packed rows skip pairs that no token sees.

    Only on a GPU, and if ``model.attention`` is ``auto``; where the GPU does not allow it, a line
    of the log says why.
    """
    if not wants_blocks(model, is_gpu=policy.device.type == "cuda"):
        return policy
    obstacle = blocks_obstacle(policy.model)
    if obstacle is not None:
        _logger.warning("packed rows of %s are computed in full: %s", policy.name, obstacle)
        return policy
    use_blocks(policy.model)
    return replace(policy, block_masks=True)


def _check_ends(policy: Policy, stop: str | None) -> None:
    if not (policy.eos_ids or policy.closing_text or stop):
        raise RunError(
            f"nothing can end a response of {policy.name}: neither its generation_config.json nor "
            "its tokenizer has an eos_token that the model knows, and its chat template closes no "
            "turn of an assistant; name another template by model.chat_template, or a text that "
            "ends responses by rollout.stop"
        )


def _warn_of_missing_opening(policy: Policy) -> None:
    missing = missing_opening(policy.processor)
    if missing is not None:
        _logger.warning(
            "the chat template of %s ignores add_generation_prompt: its prompts end without %s, so "
            "nothing tells the model that its answer begins; name another by model.chat_template",
            policy.name,
            repr(missing) if missing.strip() else "a mark behind the question",
        )


def _longest_prompt(model: Any, limit: int | None, completion: int) -> int | None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None or context is None:
        return limit
    if completion >= context:
        raise RunError(
            f"rollout.max_completion_length is {completion}, but the model's context has "
            f"{context} tokens, prompt included; it must be less"
        )
    return context - completion
