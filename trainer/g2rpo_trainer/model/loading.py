"""Load a policy as a run's configuration says: from the package, a folder or the hub."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from g2rpo._shown import error_text
from g2rpo_trainer.config import Model, TrainConfig
from g2rpo_trainer.errors import RunError, ran_out_of_memory
from g2rpo_trainer.policy import policy_path

from ..distributed import Ranks
from ..sharding import shard, wants_sharding
from . import checkpointed, lora
from .chat_template import missing_opening
from .device import memory_advice, resolve_device
from .freezing import freeze_vision
from .policy_model import GENERATION_SETTINGS, Policy, make_policy
from .processors import load_processor
from .versions import require_transformers

BUILTIN = "builtin"

_logger = logging.getLogger(__name__)


class _Source(NamedTuple):
    """Where the parts of a model come from."""

    weights: str
    """Folder or hub id of the model itself."""
    processor: str
    adapter: Path | None
    gguf_file: str | None


def load_described(
    config: TrainConfig,
    name: str | None = None,
    *,
    ranks: Ranks = Ranks(),
) -> Policy:
    """Load the policy of a run.

    Parameters
    ----------
    config : TrainConfig
        Its model and rollout sections.
    name : str, optional
        Another model in place of the described one, such as a checkpoint of the run.
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
        ranks=ranks,
    )
    with ranks.raise_on_all_ranks():
        _check_ends(policy, rollout.stop)
    # The reference of a run is loaded without a name, and has the same template.
    if name is not None and ranks.is_main:
        _warn_of_missing_opening(policy)
    return policy


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


def load_policy(
    name: str,
    *,
    device: torch.device | str,
    model: Model = Model(),
    max_prompt_length: int | None = None,
    max_completion_length: int = 0,
    ranks: Ranks = Ranks(),
) -> Policy:
    """Load a policy from the package, a folder or the hub.

    Parameters
    ----------
    name : str
        ``"builtin"`` for the embedded policy, else a folder or a hub id of a model that
        ``AutoModelForImageTextToText`` or ``AutoModelForCausalLM`` reads, or a checkpoint.
    device : torch.device or str
        Where the model goes.
    model : Model
        Section ``model`` of the configuration: how it is loaded, and what of it is trained. Its
        ``name`` and ``device`` are not looked at.
    max_prompt_length : int, optional
        Longest prompt in tokens; None is what the completion leaves of the model's context.
    max_completion_length : int
        Longest response in tokens.
    ranks : Ranks
        Ranks that load the policy together.

    Returns
    -------
    Policy
        Without shortcuts: see :func:`g2rpo_trainer.shortcuts.choose_shortcuts`.
        With the model in evaluation mode: sampling and updates must see the same function, so
        dropout stays off.

    Raises
    ------
    RunError
        If there is no such model, it is of another kind, or something about it is missing.
    """
    source = _source(name, model)
    device = torch.device(device)
    is_divided = wants_sharding(model, ranks.size)
    remedies = ("model.dtype: bfloat16", "a smaller model")
    with ranks.raise_on_all_ranks(), memory_advice("loading the model", *remedies):
        loaded, processor = read_parts(name, model)
        lora.attach(loaded, model, source.adapter)
        freeze_vision(loaded, model)
        # A model that is divided may be too large for any of the devices.
        loaded = (loaded if is_divided else loaded.to(device)).eval()
        if model.gradient_checkpointing:
            checkpointed.enable_gradient_checkpointing(loaded)
        longest = _longest_prompt(loaded, max_prompt_length, max_completion_length)
    ranks.require_same_weights(loaded)
    if is_divided:
        shard(loaded, device, ranks.size)
    policy = make_policy(
        loaded,
        processor,
        name=name,
        max_prompt_length=longest,
    )
    return replace(policy, generation_settings=_generation_settings(source.weights))


def read_parts(name: str, model: Model) -> tuple[Any, Any]:
    """Return model and processor as they are stored, on the CPU; of an adapter its base.

    Parameters
    ----------
    name : str
        As of :func:`load_policy`.
    model : Model
        Section ``model`` of the configuration.

    Raises
    ------
    RunError
        If they cannot be loaded.
    """
    require_transformers()
    _require_folder(name)
    source = _source(name, model)
    try:
        loaded = _load_model(source, model)
        # Beside an adapter the processor is a folder, whatever the base came in.
        gguf_file = source.gguf_file if source.adapter is None else None
        return loaded, load_processor(source.processor, loaded, model, gguf_file)
    # What a damaged or unfinished folder raises is up to the libraries that read it.
    except Exception as error:
        if isinstance(error, RunError) or ran_out_of_memory(error):
            raise
        reason = error_text(error)
        if model.attention != "auto" and "attention" in reason.lower():
            raise RunError(
                f"model.attention is {model.attention!r}, which {name!r} cannot be loaded with; "
                f"name another, or leave it out ({reason})"
            ) from error
        raise RunError(
            f"--model is {name!r}, which cannot be loaded; it must be 'builtin', a folder or a hub "
            f"id of an image-text-to-text or text-generation model ({reason})"
        ) from error


def meta_model(model: Model) -> Any:
    """Return the model of a run without its weights: parameters on the meta device.

    Parameters
    ----------
    model : Model
        Section ``model`` of the configuration. Of a model only its configuration is read.

    Returns
    -------
    transformers.PreTrainedModel
        With the adapter that is trained, if there is one; what is frozen takes no gradients.

    Raises
    ------
    RunError
        If the configuration cannot be read.
    """
    require_transformers()
    _require_folder(model.name)
    source = _source(model.name, model)
    try:
        config, _ = _read_config(source, model)
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            built = _auto_class(config).from_config(
                config,
                dtype=getattr(torch, model.dtype),
                trust_remote_code=model.trust_remote_code,
                **_attention(model),
            )
            lora.attach_empty(built, model, source.adapter)
    except Exception as error:
        if isinstance(error, RunError):
            raise
        raise RunError(
            f"the configuration of {model.name!r} cannot be read ({error_text(error)})"
        ) from error
    freeze_vision(built, model)
    return built


def _require_folder(name: str) -> None:
    # The hub would refuse such a name for its form, and say nothing of folders.
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if is_path and not Path(name).is_dir():
        raise RunError(
            f"--model is {name!r}, but there is no such folder; name one, or owner/name of the hub"
        )


def _source(name: str, model: Model) -> _Source:
    weights = str(policy_path()) if name == BUILTIN else name
    folder = Path(weights)
    if folder.is_dir():
        # An adapter remembers its base by this name, from wherever it is loaded.
        weights = str(folder.resolve())
    gguf_file = model.gguf_file
    if lora.is_adapter(folder):
        weights = lora.base_of(folder)
        return _Source(weights, str(folder), folder, _if_there(gguf_file, Path(weights)))
    return _Source(weights, weights, None, _if_there(gguf_file, folder))


def _if_there(gguf_file: str | None, folder: Path) -> str | None:
    # A checkpoint of a run that began with a GGUF is a folder without one.
    is_plain = (folder / "config.json").is_file()
    if gguf_file is None or (is_plain and not (folder / gguf_file).is_file()):
        return None
    return gguf_file


def _read_config(source: _Source, model: Model) -> tuple[Any, dict[str, Any]]:
    """Return a model's own configuration, and the arguments that found it."""
    from transformers import AutoConfig

    where: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    if source.gguf_file is not None:
        where["gguf_file"] = source.gguf_file
    config = AutoConfig.from_pretrained(source.weights, **where)
    # Nobody looks at them, most kernels make none, and a configuration that asks cannot be saved.
    config.output_attentions = False
    return config, where


def _attention(model: Model) -> dict[str, Any]:
    return {} if model.attention == "auto" else {"attn_implementation": model.attention}


def _load_model(source: _Source, model: Model) -> Any:
    config, where = _read_config(source, model)
    # The configuration of a GGUF is not read again: its header takes seconds.
    options: dict[str, Any] = {"dtype": getattr(torch, model.dtype), "config": config}
    options |= _attention(model)
    loaded = _auto_class(config).from_pretrained(source.weights, **where, **options)
    # A generation loop that comes with the model may draw from another distribution.
    vars(loaded).pop("generate", None)
    if source.gguf_file is not None:
        _forget_quantization(loaded)
    # What cannot be written is found out now, not at the first checkpoint.
    with TemporaryDirectory() as folder:
        loaded.config.save_pretrained(folder)
    return loaded


def _generation_settings(weights: str) -> str | None:
    """Return the text of a model's generation settings, which transformers does not keep whole."""
    from huggingface_hub import try_to_load_from_cache

    folder = Path(weights)
    if folder.is_dir():
        found: Any = folder / GENERATION_SETTINGS
    else:
        found = try_to_load_from_cache(weights, GENERATION_SETTINGS)
    is_file = isinstance(found, str | Path) and Path(found).is_file()
    return Path(found).read_text(encoding="utf-8") if is_file else None


def _auto_class(config: Any) -> Any:
    """Choose between models with and without images by what the configuration is of."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import modeling_auto

    own = getattr(config, "auto_map", None) or {}
    with_images = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if type(config) in with_images or AutoModelForImageTextToText.__name__ in own:
        return AutoModelForImageTextToText
    text_only = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) in text_only or AutoModelForCausalLM.__name__ in own:
        return AutoModelForCausalLM
    raise ValueError(f"it is a {config.model_type}, which generates no text")


def _forget_quantization(model: Any) -> None:
    # The weights were unpacked on the way in. While the configuration still calls them quantised,
    # `save_pretrained` refuses to write them.
    del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None


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
