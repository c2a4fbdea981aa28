"""Weights of the policy for vLLM and for checkpoints: whole, merged, and named as on disk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from g2rpo_trainer.errors import RunError

from .config import Model, Rollout
from .model.adapting import is_adapted, tied_layers, vision_tower
from .model.policy_model import Policy
from .sharding import full_tensor, reshard

_LAYER = re.compile(r"^.*?\.\d+\.")


def weights_of(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield names and values of all weights, layer by layer; the policy stays as it is.

    Parameters
    ----------
    policy : Policy
        If it is sharded, every rank must iterate over all weights, and gets all of them.

    Yields
    ------
    name, weight : str, Tensor
        The name is that of the model's own files, which may differ from the one in memory; an
        adapter is merged into its weight. Weights that are the same tensor come once.
    """
    model = policy.model
    reshard(model)
    adapted = _adapted_layers(model)
    for _, layer in groupby(model.named_parameters(), key=lambda named: _layer_of(named[0])):
        weights: dict[str, torch.Tensor] = {}
        for name, weight in layer:
            if (place := _place(name, adapted)) is not None:
                weights[place] = _merged(full_tensor(weight.detach()), place, adapted)
        if weights:
            yield from named_as_on_disk(model, weights).items()


def require_handover(policy: Policy) -> None:
    """Raise `RunError` if vLLM cannot take over the policy's weights.

    Its adapter must consist of matrices beside weights that no other layer uses.
    """
    adapted = _adapted_layers(policy.model)
    faults = [f"the adapter of {name} (a tied weight)" for name in tied_layers(policy.model)]
    if policy.has_adapter:
        trained = (name for name, weight in policy.model.named_parameters() if weight.requires_grad)
        faults += [name for name in trained if _place(name, adapted) is not None]
    if faults:
        raise RunError(
            f"rollout.engine is 'vllm', which cannot take over {faults[0]}; name "
            "rollout.engine: transformers, or another model.lora.target_modules"
        )


def sends_adapter(options: Rollout, policy: Policy) -> bool:
    """Tell whether vLLM gets the adapter itself in place of merged weights."""
    return options.vllm_adapter == "request" and policy.has_adapter


def require_request(policy: Policy, model: Model) -> None:
    """Raise `RunError` if vLLM cannot add the policy's adapter to its own base.

    The adapter must be one of linear layers of the language model, without the output layer, and
    the base must be stored as vLLM reads it.
    """
    config = policy.model.peft_config["default"]
    tower, head = vision_tower(policy.model), policy.model.get_output_embeddings()
    inside = {id(module) for module in tower.modules()} if tower is not None else set()
    unfit = {id(head), id(policy.model.get_input_embeddings())} | inside
    faults = [
        f"the adapter of {name}"
        for name, layer in _adapted_layers(policy.model).items()
        if id(layer) in unfit or not isinstance(layer.get_base_layer(), torch.nn.Linear)
    ]
    faults += [
        f"an adapter with {name}"
        for name in ("rank_pattern", "alpha_pattern", "use_dora", "modules_to_save")
        if getattr(config, name, None)
    ]
    if model.gguf_file:
        faults.append("a base in a GGUF file")
    if faults:
        raise RunError(
            f"rollout.vllm_adapter is 'request', but vLLM does not take {faults[0]} that way; "
            "name 'merged'"
        )


def save_whole(policy: Policy, folder: Path) -> None:
    """Write the policy with its adapter merged, as a model that loads from its folder.

    Every rank of a sharded policy must call this; each writes its own copy.
    """
    from safetensors.torch import save_file

    policy.model.config.save_pretrained(folder)
    policy.processor.save_pretrained(folder)
    weights = {name: weight.cpu().contiguous() for name, weight in weights_of(policy)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def save_adapter(policy: Policy, folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write an adapter's whole weights in peft's format; any rank can, each into its own folder."""
    from safetensors.torch import save_file

    # A model that is sharded writes on rank 0 alone.
    policy.model.peft_config["default"].save_pretrained(str(folder))
    own = policy.model.get_adapter_state_dict(state_dict=weights)
    named = {f"base_model.model.{name}": weight.contiguous() for name, weight in own.items()}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _adapted_layers(model: Any) -> dict[str, Any]:
    """Return the layers with an adapter by their names."""
    return {name: module for name, module in model.named_modules() if is_adapted(module)}


def _place(name: str, adapted: dict[str, Any]) -> str | None:
    """Return the name that a weight has without adapters; None for one of an adapter."""
    for end in (".base_layer.weight", ".base_layer.bias"):
        if name.endswith(end) and name.removesuffix(end) in adapted:
            return name.removesuffix(end) + end.removeprefix(".base_layer")
    # An adapter's own weights are further inside of its layer, by its name.
    parts = name.split(".")
    is_adapters = any(".".join(parts[:depth]) in adapted for depth in range(1, len(parts)))
    return None if is_adapters else name


def _merged(weight: torch.Tensor, place: str, adapted: dict[str, Any]) -> torch.Tensor:
    layer: Any = adapted.get(place.removesuffix(".weight")) if place.endswith(".weight") else None
    for adapter in layer.active_adapters if layer is not None else ():
        # The sum is rounded once.
        delta = full_tensor(layer.get_delta_weight(adapter).detach())
        weight = (weight.float() + delta.float()).to(weight.dtype)
    return weight


def _layer_of(name: str) -> str:
    # What is divided or put together differently on disk stays inside of a layer.
    found = _LAYER.match(name)
    return found.group() if found else ""


def named_as_on_disk(model: Any, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights of a model under the names and in the form of its files."""
    from transformers.core_model_loading import revert_weight_conversion

    found: dict[str, torch.Tensor] = revert_weight_conversion(model, weights)
    return found
