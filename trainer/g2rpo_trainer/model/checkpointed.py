"""Gradient checkpointing of a model that stays in evaluation mode.

Transformers checkpoints the layers of a model in training mode only, and training mode brings
dropout with it: the update would then see another function than the sampling did. So the layers
alone are put into training mode, without what they are made of, and only where gradients are
taken: generation keeps its cache.
"""

from __future__ import annotations

from typing import Any

import torch

from g2rpo_trainer.errors import RunError


def enable(model: Any) -> None:
    """Compute the layers of a model again in the backward pass in place of keeping what they hold.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        In evaluation mode.

    Raises
    ------
    RunError
        If the model has no layers that can be.
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
    # Its second name in transformers is the one that stays.
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
    # A layer may apply dropout itself, by a number among its attributes.
    for name, value in vars(layer).items():
        if "dropout" in name and isinstance(value, float):
            setattr(layer, name, 0.0)
