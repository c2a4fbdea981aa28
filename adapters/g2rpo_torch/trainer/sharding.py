"""A model whose weights are divided over the processes (FSDP2).

Each decoder layer is a unit whose weights come together just before it computes. Everything else is
the root, which comes together for a whole pass: embeddings, output layer, and the vision tower,
because not every process has an image in every pass.

Collectives happen inside of forward and backward passes, so all processes must make the same
number of them: :mod:`~g2rpo_torch.trainer.passes` sees to it.
"""

from __future__ import annotations

from collections.abc import Callable
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
from torch.distributed.tensor import DTensor, distribute_tensor

from g2rpo.run.errors import RunError


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
    RunError
        If its layers are not known, or it has adapters.
    """
    layers = _decoder_layers(model)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise RunError(
            "model.lora.rank is set, but an adapter is not divided over processes; leave the "
            "adapter out, or train with model.sharding: none, which has the whole model on each"
        )
    # Sums over processes are taken in 32 bits; 16-bit gradients are rounded once, at the end.
    precision = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    options = {"mesh": init_device_mesh(device.type, (size,)), "mp_policy": precision}
    for layer in layers:
        fully_shard(layer, **options)
    fully_shard(model, **options)
    model.run_inside = MethodType(_run_inside, model)
    for method in ("run_inside", "generate"):
        register_fsdp_forward_method(model, method)


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


def touch(model: Any) -> torch.Tensor | float:
    """Return a zero that gives trained weights of the vision tower a gradient, if only of zeros.

    Processes add up gradients weight by weight, so a pass without images must not leave any out.
    Called with the root's weights together, it becomes a part of the loss.
    """
    if not is_sharded(model):
        return 0.0
    text = [model.get_decoder(), model.get_output_embeddings()]
    used = {id(weight) for part in text if part is not None for weight in part.parameters()}
    unused = [weight for weight in model.parameters() if id(weight) not in used]
    entries = [weight.flatten()[0] for weight in unused if weight.requires_grad]
    # A weight that is not finite is for the norm of the gradient to find.
    return torch.stack(entries).nan_to_num(0.0, 0.0, 0.0).sum() * 0.0 if entries else 0.0


def whole_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return the weights of a divided model on the CPU of the first process; nothing on others."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    set_down(model)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)


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


def _run_inside(model: Any, function: Callable[..., Any], inputs: dict[str, Any]) -> Any:
    return function(**inputs)


def _decoder_layers(model: Any) -> list[Any]:
    layers = getattr(model.get_decoder(), "layers", None)
    if not layers:
        raise RunError(
            f"{type(model).__name__} does not say which its decoder layers are, so it cannot be "
            "divided over processes; train with model.sharding: none"
        )
    return list(layers)
