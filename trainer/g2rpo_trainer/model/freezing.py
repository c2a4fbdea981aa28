"""Parts of a model that are left as they are."""

from __future__ import annotations

from typing import Any

from g2rpo_trainer.config import Model
from g2rpo_trainer.errors import RunError


def freeze_vision(model: Any, options: Model) -> None:
    """Take the vision tower out of training, if ``model.freeze_vision`` says so.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Whose parameters of the tower take no gradients from now on.
    options : Model
        Section ``model`` of the configuration.

    Raises
    ------
    RunError
        If the model has none.
    """
    if not options.freeze_vision:
        return
    tower = vision_tower(model)
    if tower is None:
        raise RunError(
            f"model.freeze_vision is set, but {type(model).__name__} has no vision tower; leave it "
            "out"
        )
    tower.requires_grad_(False)


def vision_tower(model: Any) -> Any | None:
    """Return the module that looks at images, or None.

    Its names are few in transformers: ``vision_tower`` (LLaVA, Gemma 3), ``visual`` (Qwen-VL, with
    the layer that merges patches), ``vision_model`` (Idefics3, SmolVLM).
    """
    tower = model.get_encoder(modality="image")
    return None if tower in (model, model.base_model) else tower


def count_parameters(model: Any) -> tuple[int, int]:
    """Return how many parameters are trained, and how many there are."""
    sizes = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    return sum(size for size, is_trained in sizes if is_trained), sum(size for size, _ in sizes)


def trained_share(model: Any) -> str | None:
    """Say how much of a model is trained, or None if it is all.

    Examples
    --------
    >>> import torch
    >>> layers = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.Linear(40, 20))
    >>> layers[0].requires_grad_(False)
    Linear(in_features=30, out_features=40, bias=True)
    >>> trained_share(layers)
    '820 of 2,060 parameters are trained (39.8 %)'
    """
    trained, total = count_parameters(model)
    if trained == total:
        return None
    return f"{trained:,} of {total:,} parameters are trained ({trained / total:.1%})".replace(
        "%", " %"
    )
