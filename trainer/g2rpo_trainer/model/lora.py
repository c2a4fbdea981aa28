"""Low-rank adapters (LoRA) beside frozen weights, by peft."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from g2rpo_trainer.config import Model
from g2rpo_trainer.errors import RunError

from ..sharding import reshard
from .freezing import vision_tower
from .versions import require_peft

_CONFIG = "adapter_config.json"
# Adapters begin with random numbers of their own, so that a run draws the same ones without them.
_SEED = 0


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter in place of a model."""
    return (folder / _CONFIG).is_file()


def base_of(folder: Path) -> str:
    """Return the folder or hub id of the model that an adapter belongs to."""
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    return str(config["base_model_name_or_path"])


def attach(model: Any, options: Model, adapter: Path | None) -> None:
    """Add a new adapter or a saved one to a model; nothing but it is trained from then on.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Changed in place.
    options : Model
        Section ``model`` of the configuration, whose ``lora`` says what a new one is like.
    adapter : Path or None
        Folder of a saved one.
    """
    if adapter is not None:
        require_peft()
        _require_exact(adapter)
        _load(model, adapter)
    elif options.lora.rank:
        require_peft()
        _add(model, options)


def attach_empty(model: Any, options: Model, adapter: Path | None) -> None:
    """Add what :func:`attach` would add to a model on the meta device, without weights."""
    if adapter is None:
        attach(model, options, None)
    else:
        require_peft()
        from peft import PeftConfig

        model.add_adapter(PeftConfig.from_pretrained(str(adapter)), adapter_name="default")
    # peft gives an adapter the dtype of its layer only where it has a device.
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(model.dtype)


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """Let a model be its base inside the context.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        With an adapter; divided over processes or not.
    """
    # What is switched must be this process's parts, not the copy that a pass has brought together.
    reshard(model)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    model.disable_adapters()
    # Which ends the training of its weights, and a divided model asks once, at its first pass,
    # what is trained.
    for weight in trained:
        weight.requires_grad_()
    try:
        yield
    finally:
        reshard(model)
        model.enable_adapters()


def tied_layers(model: Any) -> dict[str, Any]:
    """Return the layers with an adapter whose own weight another layer has, too, by their names."""
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    layers = ((name, module) for name, module in model.named_modules() if is_adapted(module))
    return {name: layer for name, layer in layers if uses[id(layer.get_base_layer().weight)] > 1}


def is_adapted(module: Any) -> bool:
    """Tell whether a module is a layer with a low-rank adapter."""
    return hasattr(module, "get_delta_weight")


def _load(model: Any, adapter: Path) -> None:
    conversions = getattr(model, "_weight_conversions", None)
    own = [(module, *named) for module in model.modules() for named in module._parameters.items()]
    model.load_adapter(str(adapter), adapter_name="default", is_trainable=True)
    # These are now the names in the adapter's files, but the policy is handed on by the model's.
    model._weight_conversions = conversions
    # peft stores an adapted embedding or output layer itself, too. Loaded, it would be trainable,
    # and no longer tied.
    for module, name, weight in own:
        setattr(module, name, weight)


def _require_exact(adapter: Path) -> None:
    """Raise `RunError` for an adapter that cannot be trained, switched off and merged exactly."""
    config = json.loads((adapter / _CONFIG).read_text(encoding="utf-8"))
    exact: dict[str, tuple[Any, ...]] = {
        # The reference would keep the trained biases, or the base that peft has changed.
        "bias": (None, "none"),
        "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva"),
        # Of these transformers does not read everything, or peft cannot merge it.
        "ensure_weight_tying": (None, False),
        "use_dora": (None, False),
        "lora_bias": (None, False),
    }
    for name, values in exact.items():
        if (value := config.get(name)) not in values:
            raise RunError(
                f"{adapter / _CONFIG} has {name}: {value!r}, which cannot be trained further here; "
                f"it must be {values[1]!r}. Merge that adapter into its model, and begin from this"
            )


def _add(model: Any, options: Model) -> None:
    from peft import LoraConfig

    lora = options.lora
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=2 * lora.rank if lora.alpha is None else lora.alpha,
        # Sampling and updates must see the same function, so dropout stays off.
        lora_dropout=0.0,
        target_modules=_targets(model, lora.target_modules, options.freeze_vision),
        base_model_name_or_path=model.name_or_path,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model.add_adapter(config, adapter_name="default")


def _targets(model: Any, wanted: list[str], is_vision_frozen: bool) -> list[str]:
    """Return the full names of the layers that get an adapter."""
    linear = _linear_layers(model)
    tower = vision_tower(model)
    inside = {id(module) for module in tower.modules()} if tower is not None else set()
    head = model.get_output_embeddings()
    if not wanted:
        language = {name for name, m in linear.items() if id(m) not in inside and m is not head}
        return sorted(language)
    allowed = {name for name, m in linear.items() if not (is_vision_frozen and id(m) in inside)}
    chosen = set()
    for end in wanted:
        found = {name for name in allowed if name == end or name.endswith(f".{end}")}
        if not found:
            ends = sorted({name.rpartition(".")[2] for name in allowed})
            raise RunError(
                f"model.lora.target_modules names {end!r}, but no linear layer that is trained is "
                f"called so (there are: {', '.join(ends)})"
            )
        chosen |= found
    return sorted(chosen)


def _linear_layers(model: Any) -> dict[str, Any]:
    from transformers.pytorch_utils import Conv1D

    kinds = (torch.nn.Linear, Conv1D)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
