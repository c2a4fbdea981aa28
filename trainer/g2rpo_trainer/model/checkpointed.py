"""Gradient checkpointing of a model in evaluation mode.

Transformers checkpoints layers in training mode only, and training mode enables dropout: updates
would then compute another function than sampling does. So only the layers are put into training
mode, without their submodules, and only while gradients are enabled: generation keeps its KV cache.
"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import RunError


def enable_gradient_checkpointing(model: Any) -> None:
    """Recompute the activations of a model's layers in the backward pass.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        In evaluation mode.

    Raises
    ------
    RunError
        If the model does not support it.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    if not (layers and model.supports_gradient_checkpointing):
        raise RunError(
            f"model.gradient_checkpointing is set, but {type(model).__name__} cannot do it; leave "
            "it out, and lower optimization.micro_batch_tokens"
        )
    # The newer of its two names in transformers.
    switch_on = getattr(
        model, "activation_checkpointing_enable", model.gradient_checkpointing_enable
    )
    switch_on({"use_reentrant": False})
    for layer in layers:
        _without_dropout(layer)

    def switch(*_: Any) -> None:
        for layer in layers:
            layer.training = torch.is_grad_enabled()

    model.base_model.register_forward_pre_hook(switch)


def _without_dropout(layer: Any) -> None:
    # A layer may apply dropout itself, with a rate among its attributes.
    for name, value in vars(layer).items():
        if "dropout" in name and isinstance(value, float):
            setattr(layer, name, 0.0)
