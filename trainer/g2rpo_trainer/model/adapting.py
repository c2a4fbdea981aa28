"""Prepare a loaded model for training: adapters, a frozen vision tower, checkpointed layers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version

from g2rpo._extras import needs
from g2rpo_trainer.config import Model
from g2rpo_trainer.errors import RunError

from ..sharding import reshard

_CONFIG = "adapter_config.json"
# Adapters begin with random numbers of their own, so that a run draws the same ones without them.
_SEED = 0
# The first release of transformers that wants a later peft than pyproject.toml does.
_NEEDS_NEWER_PEFT = "5.24"


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter in place of a model."""
    return (folder / _CONFIG).is_file()


def base_of(folder: Path) -> str:
    """Return the folder or hub id of the model that an adapter belongs to."""
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    return str(config["base_model_name_or_path"])


def attach_adapter(model: Any, options: Model, adapter: Path | None) -> None:
    """Add a low-rank adapter (LoRA, by peft) to a model; from then on only it is trained.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Changed in place.
    options : Model
        Section ``model`` of the configuration; ``lora`` describes a new adapter, rank 0 is none.
    adapter : Path or None
        Folder of a saved adapter.

    Raises
    ------
    RunError
        If the installed peft cannot be used, or the saved adapter cannot be trained exactly.
    """
    if adapter is None and not options.lora.rank:
        return
    _require_peft()
    if adapter is None:
        _add_adapter(model, options)
    else:
        _require_exact(adapter)
        _load_adapter(model, adapter)


def attach_empty_adapter(model: Any, options: Model, adapter: Path | None) -> None:
    """Add what :func:`attach_adapter` would add to a model on the meta device, without weights."""
    if adapter is None:
        attach_adapter(model, options, None)
    else:
        _require_peft()
        from peft import PeftConfig

        model.add_adapter(PeftConfig.from_pretrained(str(adapter)), adapter_name="default")
    # peft gives an adapter the dtype of its layer only where it has a device.
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(model.dtype)


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """Switch the adapter of a model off inside the context.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Model with an adapter, sharded or not.
    """
    # The shards must be switched, not the full weights that a pass has gathered.
    reshard(model)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    model.disable_adapters()
    # `disable_adapters` also ends the training of its weights, and a sharded model asks once, at
    # its first pass, which weights are trained.
    for weight in trained:
        weight.requires_grad_()
    try:
        yield
    finally:
        reshard(model)
        model.enable_adapters()


def tied_layers(model: Any) -> dict[str, Any]:
    """Return the layers with an adapter that share their weight with another layer, by name."""
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    layers = ((name, module) for name, module in model.named_modules() if is_adapted(module))
    return {name: layer for name, layer in layers if uses[id(layer.get_base_layer().weight)] > 1}


def is_adapted(module: Any) -> bool:
    """Tell whether a module is a layer with a low-rank adapter."""
    return hasattr(module, "get_delta_weight")


def _require_peft() -> None:
    if (fault := peft_fault()) is not None:
        raise RunError(fault)


def peft_fault() -> str | None:
    """Return why the installed peft cannot be used, or None if it can."""
    try:
        import peft
    except ImportError:
        return needs("model.lora", "peft", extra="torch")
    from transformers import __version__
    from transformers.integrations.peft import MIN_PEFT_VERSION as least

    if Version(peft.__version__) >= Version(least):
        return None
    return (
        f"model.lora needs peft >= {least} with transformers {__version__}, but peft is "
        f"{peft.__version__}; install that, or a release of transformers before "
        f'{_NEEDS_NEWER_PEFT}: pip install "transformers<{_NEEDS_NEWER_PEFT}"'
    )


def _load_adapter(model: Any, adapter: Path) -> None:
    conversions = getattr(model, "_weight_conversions", None)
    own = [(module, *named) for module in model.modules() for named in module._parameters.items()]
    model.load_adapter(str(adapter), adapter_name="default", is_trainable=True)
    # peft has set these for the adapter's files; the policy is saved by the names of the model.
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
        # Transformers does not read all of these, or peft cannot merge it.
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


def _add_adapter(model: Any, options: Model) -> None:
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


def freeze_vision(model: Any, options: Model) -> None:
    """Freeze the vision tower, if ``model.freeze_vision`` is set.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Changed in place.
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
    """Return the vision tower of a model, or None.

    Its names in transformers are ``vision_tower`` (LLaVA, Gemma 3), ``visual`` (Qwen-VL, with
    the layer that merges patches), ``vision_model`` (Idefics3, SmolVLM).
    """
    tower = model.get_encoder(modality="image")
    return None if tower in (model, model.base_model) else tower


def count_parameters(model: Any) -> tuple[int, int]:
    """Return how many parameters are trained, and how many there are."""
    sizes = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    return sum(size for size, is_trained in sizes if is_trained), sum(size for size, _ in sizes)


def trained_share(model: Any) -> str | None:
    """Return a sentence on the share of trained parameters, or None if all are trained.

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


def enable_gradient_checkpointing(model: Any) -> None:
    """Recompute the activations of a model's layers in the backward pass.

    Transformers checkpoints layers in training mode only, and training mode enables dropout:
    updates would then compute another function than sampling does. So only the layers are put into
    training mode, without their submodules, and only while gradients are enabled: generation keeps
    its KV cache.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Model in evaluation mode, changed in place.

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
    # The method has two names in transformers; the newer one if there is one.
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
