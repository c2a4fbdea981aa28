"""FSDP2: a model whose weights are sharded over the ranks.

Each decoder layer is a unit, gathered just before it computes. Everything else is the root unit,
which stays gathered for a whole pass: embeddings, output layer, and the vision tower, because not
every rank has an image in every pass.

Forward and backward passes contain collectives, so all ranks must run the same number of them; see
:func:`g2rpo_trainer.update.dummy_passes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from g2rpo_torch import gather_rollouts

from .config import Model
from .device import free_memory
from .errors import SharedError
from .launch import Launch


def shard(model: Any, device: torch.device, size: int) -> None:
    """Shard the weights of a model over the ranks, in place.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The same on every rank; it moves to the device one unit at a time.
    device : torch.device
        Device of this rank.
    size : int
        World size.

    Raises
    ------
    SharedError
        If the model does not expose its decoder layers.

    Notes
    -----
    An adapter is sharded with its layer. Only gradients of trained weights are communicated.
    """
    layers = _decoder_layers(model)
    # Gradients are reduced in float32; 16-bit ones are rounded once, at the end.
    precision = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (size,)),
        "mp_policy": precision,
    }
    for layer in layers:
        fully_shard(layer, **options)
    fully_shard(model, **options)
    layers[0].register_forward_pre_hook(_require_input_grad, prepend=True, with_kwargs=True)
    model.call_with_root = MethodType(_call_with_root, model)
    for method in ("call_with_root", "generate"):
        register_fsdp_forward_method(model, method)


def wants_sharding(options: Model, size: int) -> bool:
    """Tell whether section ``model`` asks to shard a model over so many ranks."""
    wanted = Launch.read().sharded if options.sharding == "auto" else options.sharding == "fsdp"
    return wanted and size > 1


def is_sharded(model: Any) -> bool:
    """Tell whether a model's weights are sharded over ranks."""
    return isinstance(model, FSDPModule)


def call_unsharded(model: Any, function: Callable[..., Any], **inputs: Any) -> Any:
    """Call a part of the model with the root unit gathered.

    The root stays gathered until the backward pass, or until :func:`reshard`.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Sharded or not.
    function : callable
        A submodule, or a method of one.
    **inputs
        Its arguments.
    """
    if is_sharded(model):
        return model.call_with_root(function, inputs)
    return function(**inputs)


@contextmanager
def gathered(model: Any) -> Iterator[bool]:
    """Gather the weights of a sharded model once for all forward passes inside the context.

    Only if all ranks have room for them; a collective. The first forward pass gathers the weights.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Sharded or not.

    Yields
    ------
    bool
        Whether forward passes behind the first have no collectives, so that ranks may run different
        numbers of them.
    """
    if not is_sharded(model):
        yield True
        return
    (flags,), _ = gather_rollouts(torch.tensor([[_fits_whole(model)]]))
    if not flags.all():
        yield False
        return
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield True
    finally:
        for unit in units:
            # As FSDP2 has it by default: the root stays gathered for the backward pass.
            unit.set_reshard_after_forward(unit is not model, recurse=False)
            unit.reshard()


def _fits_whole(model: Any) -> bool:
    """Tell whether this rank can gather all weights and has as much left for a KV cache."""
    free = free_memory(model.device)
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return free is None or 2 * size <= free


def reshard(model: Any) -> None:
    """Release the gathered weights; each rank keeps its shard."""
    if is_sharded(model):
        model.reshard()


def with_zero_gradients(model: Any, loss: torch.Tensor) -> torch.Tensor:
    """Add a zero term so that weights unused on this rank still get a (zero) gradient.

    Gradients are reduced weight by weight, and a pass without images has none for the vision tower.
    A collective: every rank must call this between each forward and backward pass.
    """
    if not is_sharded(model):
        return loss
    _keep_reduced_gradients(model)
    text = [part for part in (model.get_decoder(), model.get_output_embeddings()) if part]
    always = {id(weight) for part in text for weight in part.parameters()}
    weights = [w for w in model.parameters() if w.requires_grad and id(w) not in always]
    if not weights:
        return loss
    used = _leaves(loss)
    own = torch.tensor([[id(weight) in used for weight in weights]])
    (flags,), _ = gather_rollouts(own)
    elsewhere = flags.any(0) & ~own[0]
    lacking = [weight for weight, lacks in zip(weights, elsewhere, strict=True) if lacks]
    if not lacking:
        return loss
    # Weights that are not finite are found by the norm of the gradient.
    entries = torch.stack([weight.flatten()[0] for weight in lacking]).nan_to_num(0.0, 0.0, 0.0)
    return loss + 0.0 * entries.sum()


def _keep_reduced_gradients(model: Any) -> None:
    """Let FSDP2 keep the float32 sums over the ranks, where weights take gradients of any dtype.

    By itself it rounds them to the dtype of the weights, and has no option for it.
    """
    for unit in model.modules():
        if not isinstance(unit, FSDPModule):
            continue
        state: Any = unit._get_fsdp_state()
        # One group a unit until torch 2.12.
        groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
        for group in groups:
            weights = [part.sharded_param for part in group.fsdp_params]
            if all(weight.grad_dtype is None for weight in weights if weight.requires_grad):
                group._orig_dtype = torch.float32


def _leaves(loss: torch.Tensor) -> set[int]:
    """Return the ids of the weights that a loss depends on."""
    found: set[int] = set()
    seen, nodes = set(), [loss.grad_fn]
    while nodes:
        node: Any = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        nodes += [parent for parent, _ in node.next_functions]
    return found


def full_adapter(model: Any) -> dict[str, torch.Tensor]:
    """Return the whole weights of a model's adapter on the CPU; a collective if it is sharded."""
    reshard(model)
    named = dict(model.named_parameters(remove_duplicate=False))
    # With an adapted output layer peft saves more than what is trained.
    saved = {id(part) for part in model.get_adapter_state_dict(state_dict=named).values()}
    return {
        name: full_tensor(weight.detach()).cpu()
        for name, weight in named.items()
        if id(weight) in saved
    }


def full_tensor(value: torch.Tensor) -> torch.Tensor:
    """Gather a sharded tensor; a collective. Other tensors are returned unchanged."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local_tensor(value: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a sharded tensor. Other tensors are returned unchanged."""
    return value.to_local() if isinstance(value, DTensor) else value


def as_float32(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float32; of a sharded one only this rank's part is converted."""
    if not isinstance(value, DTensor):
        return value.float()
    # FSDP2 describes gradients by the dtype of the weight, whatever they are.
    return DTensor.from_local(
        value.to_local().float(),
        value.device_mesh,
        value.placements,
        run_check=False,
        shape=value.shape,
        stride=value.stride(),
    )


def shard_like(value: Any, like: torch.Tensor) -> torch.Tensor:
    """Return this rank's shard of a whole tensor, placed like another tensor of its shape.

    Parameters
    ----------
    value : Tensor or safetensors slice
        Whole tensor with at least one axis; of a stored one only this rank's rows are read.
    like : Tensor
        Sharded by rows, or not sharded.
    """
    if not isinstance(like, DTensor):
        whole: torch.Tensor = value[:]
        return whole.to(like.device)
    mesh, local = like.device_mesh, like.to_local()
    # As FSDP2 shards: rows in equal chunks, of which the last may be smaller or empty.
    start = mesh.get_local_rank() * -(-like.shape[0] // mesh.size())
    rows = value[start : start + len(local)].to(local.device) if len(local) else local.clone()
    return DTensor.from_local(
        rows, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def _require_input_grad(_: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Make the first layer's input require a gradient.

    With frozen embeddings it would not, except in passes with images and a trained vision tower,
    and ranks would reduce the gradients of their layers in different orders.
    """
    states = inputs[0] if inputs else named["hidden_states"]
    if torch.is_grad_enabled() and not states.requires_grad:
        states.requires_grad_()


def _call_with_root(model: Any, function: Callable[..., Any], inputs: dict[str, Any]) -> Any:
    return function(**inputs)


def _decoder_layers(model: Any) -> list[Any]:
    layers = getattr(model.get_decoder(), "layers", None)
    if not layers:
        raise SharedError(
            f"{type(model).__name__} does not expose its decoder layers, so it cannot be sharded "
            "over processes; train with model.sharding: none"
        )
    return list(layers)
