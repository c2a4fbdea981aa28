"""A model whose weights are divided over the processes (FSDP2).

Each decoder layer is a unit whose weights come together just before it computes. Everything else is
the root, which comes together for a whole pass: embeddings, output layer, and the vision tower,
because not every process has an image in every pass.

Collectives happen inside of forward and backward passes, so all processes must make the same
number of them: :mod:`~g2rpo_trainer.passes` sees to it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from g2rpo_torch import gather_rollouts
from g2rpo_trainer.config import Model
from g2rpo_trainer.errors import SharedError
from g2rpo_trainer.launch import Launch


def shard(model: Any, device: torch.device, size: int) -> None:
    """Divide the weights of a model over the processes, in place.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The same on every process; it moves to the device part by part.
    device : torch.device
        Where this process computes.
    size : int
        How many processes there are.

    Raises
    ------
    SharedError
        If its layers are not known.

    Notes
    -----
    An adapter is divided with the layer that it belongs to. Only what is trained has gradients, so
    only these travel.
    """
    layers = _decoder_layers(model)
    # Sums over processes are taken in 32 bits; 16-bit gradients are rounded once, at the end.
    precision = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (size,)),
        "mp_policy": precision,
    }
    for layer in layers:
        fully_shard(layer, **options)
    fully_shard(model, **options)
    layers[0].register_forward_pre_hook(_with_gradient, prepend=True, with_kwargs=True)
    model.run_inside = MethodType(_run_inside, model)
    for method in ("run_inside", "generate"):
        register_fsdp_forward_method(model, method)


def shall_shard(options: Model, size: int) -> bool:
    """Tell whether a model is divided over so many processes, as a run's section ``model`` says."""
    wanted = Launch.read().sharded if options.sharding == "auto" else options.sharding == "fsdp"
    return wanted and size > 1


def is_sharded(model: Any) -> bool:
    """Tell whether a model's weights are divided over processes."""
    return isinstance(model, FSDPModule)


def inside(model: Any, function: Callable[..., Any], **inputs: Any) -> Any:
    """Return what a part of the model computes, with the root's weights together.

    They stay together until the backward pass, or until :func:`set_down`.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Divided or not.
    function : callable
        A module or method inside of the model.
    **inputs
        Its arguments.
    """
    if is_sharded(model):
        return model.run_inside(function, inputs)
    return function(**inputs)


def set_down(model: Any) -> None:
    """Let every process have its own part of the weights only, as they are trained and saved."""
    if is_sharded(model):
        model.reshard()


def with_every_gradient(model: Any, loss: torch.Tensor) -> torch.Tensor:
    """Return a loss that gives each weight a gradient which it has on any process, if only zeros.

    Processes add up gradients weight by weight, and a pass without images has none for the vision
    tower. Every process must call this after each forward pass, before the backward pass.
    """
    if not is_sharded(model):
        return loss
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
    # A weight that is not finite is for the norm of the gradient to find.
    entries = torch.stack([weight.flatten()[0] for weight in lacking]).nan_to_num(0.0, 0.0, 0.0)
    return loss + 0.0 * entries.sum()


def _leaves(loss: torch.Tensor) -> set[int]:
    """Return the identities of the weights that a loss depends on."""
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


def whole_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return what is saved of a divided model on the CPU of the first process; nothing on others.

    Beside an adapter, which is saved alone, the weights that it adapts stay where they are.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    set_down(model)
    if getattr(model, "_hf_peft_config_loaded", False):
        return _whole_adapter(model)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    return weights


def _whole_adapter(model: Any) -> dict[str, torch.Tensor]:
    named = dict(model.named_parameters(remove_duplicate=False))
    # With an adapted output layer peft saves more than what is trained.
    saved = {id(part) for part in model.get_adapter_state_dict(state_dict=named).values()}
    weights = {}
    for name, weight in named.items():
        if id(weight) in saved:
            found = whole(weight.detach())
            if dist.get_rank() == 0:
                weights[name] = found.cpu()
    return weights


def whole(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor with the parts of all processes; every process must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def part_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return what this process has of a tensor that is divided like another one."""
    value = value.to(like.device)
    if not isinstance(like, DTensor):
        return value
    # Every process has the value already: nothing needs to travel.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def _with_gradient(_: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Let the backward pass reach the first layer on every process.

    Beside frozen embeddings it would only where a pass has images and the vision tower is trained,
    and processes would add up the gradients of their layers in different orders.
    """
    states = inputs[0] if inputs else named["hidden_states"]
    if torch.is_grad_enabled() and not states.requires_grad:
        states.requires_grad_()


def _run_inside(model: Any, function: Callable[..., Any], inputs: dict[str, Any]) -> Any:
    return function(**inputs)


def _decoder_layers(model: Any) -> list[Any]:
    layers = getattr(model.get_decoder(), "layers", None)
    if not layers:
        raise SharedError(
            f"{type(model).__name__} does not say which its decoder layers are, so it cannot be "
            "divided over processes; train with model.sharding: none"
        )
    return list(layers)
