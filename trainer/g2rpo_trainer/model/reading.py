"""Read a model and its processor as they are stored: in the package, a folder or the hub."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from packaging.version import Version

from g2rpo._shown import error_text
from g2rpo_trainer.config import Model
from g2rpo_trainer.errors import RunError, ran_out_of_memory
from g2rpo_trainer.policy import policy_path

from ..device import dtype_on
from .adapting import attach_empty_adapter, base_of, freeze_vision, is_adapter
from .policy_model import GENERATION_SETTINGS
from .processors import load_processor

BUILTIN = "builtin"
# As in pyproject.toml, which users can overrule. Releases before it miscount the images and videos
# of SmolVLM.
_TRANSFORMERS = "5.23"

_logger = logging.getLogger(__name__)


class Source(NamedTuple):
    """Folders or hub ids of the parts of a model, and the GGUF file of its weights, if any."""

    weights: str
    processor: str
    adapter: Path | None
    gguf_file: str | None


def read_parts(name: str, model: Model) -> tuple[Any, Any]:
    """Return model and processor on the CPU as they are stored; for an adapter, its base model.

    Parameters
    ----------
    name : str
        As in :func:`load_policy`.
    model : Model
        Section ``model`` of the configuration.

    Raises
    ------
    RunError
        If they cannot be loaded.
    """
    _require_transformers()
    _require_folder(name)
    source = source_of(name, model)
    try:
        loaded = _load_model(source, model)
        # The processor of an adapter is in its folder, also where the base is a GGUF file.
        gguf_file = source.gguf_file if source.adapter is None else None
        return loaded, load_processor(source.processor, loaded, model, gguf_file)
    # Libraries raise errors of any type on a damaged or unfinished folder.
    except Exception as error:
        if isinstance(error, RunError) or ran_out_of_memory(error):
            raise
        reason = error_text(error)
        keys = ("vision_attention", "attention")
        key = next((key for key in keys if getattr(model, key) != "auto"), None)
        if key is not None and "attention" in reason.lower():
            raise RunError(
                f"model.{key} is {getattr(model, key)!r}, which {name!r} cannot be loaded with; "
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
    _require_transformers()
    _require_folder(model.name)
    source = source_of(model.name, model)
    try:
        config, _ = _read_config(source, model)
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            built = _auto_class(config).from_config(
                config,
                dtype=_dtype(model),
                trust_remote_code=model.trust_remote_code,
                **_attention(config, model),
            )
            attach_empty_adapter(built, model, source.adapter)
    except Exception as error:
        if isinstance(error, RunError):
            raise
        raise RunError(
            f"the configuration of {model.name!r} cannot be read ({error_text(error)})"
        ) from error
    freeze_vision(built, model)
    return built


def _require_transformers() -> None:
    """Raise `RunError` if the installed transformers is too old."""
    from transformers import __version__

    if Version(__version__) < Version(_TRANSFORMERS):
        raise RunError(
            f"transformers is {__version__}, but must be {_TRANSFORMERS} or later: "
            f'pip install "transformers>={_TRANSFORMERS}"'
        )


def _require_folder(name: str) -> None:
    # The hub would refuse such a name for its form, and say nothing of folders.
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if is_path and not Path(name).is_dir():
        raise RunError(
            f"--model is {name!r}, but there is no such folder; name one, or owner/name of the hub"
        )


def source_of(name: str, model: Model) -> Source:
    """Return where the parts of a model are, by its name in the configuration."""
    weights = str(policy_path()) if name == BUILTIN else name
    folder = Path(weights)
    if folder.is_dir():
        # An adapter remembers its base by this name, from wherever it is loaded.
        weights = str(folder.resolve())
    gguf_file = model.gguf_file
    if is_adapter(folder):
        weights = base_of(folder)
        return Source(weights, str(folder), folder, _if_there(gguf_file, Path(weights)))
    return Source(weights, weights, None, _if_there(gguf_file, folder))


def _if_there(gguf_file: str | None, folder: Path) -> str | None:
    # A checkpoint of a run that began with a GGUF is a folder without one.
    is_plain = (folder / "config.json").is_file()
    if gguf_file is None or (is_plain and not (folder / gguf_file).is_file()):
        return None
    return gguf_file


def _read_config(source: Source, model: Model) -> tuple[Any, dict[str, Any]]:
    """Return a model's own configuration, and the arguments that found it."""
    from transformers import AutoConfig

    where: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    if model.trust_remote_code:
        # Here, since it may run from now on.
        _logger.warning(
            "model.trust_remote_code is on: Python code of %s runs with all your rights",
            source.weights,
        )
    if source.gguf_file is not None:
        where["gguf_file"] = source.gguf_file
    config = AutoConfig.from_pretrained(source.weights, **where)
    # Unused; most kernels make none, and a configuration that asks for them cannot be saved.
    config.output_attentions = False
    return config, where


def _attention(config: Any, model: Model) -> dict[str, Any]:
    """Return the argument that names a model's attention, and that of its vision tower."""
    if model.vision_attention == "auto":
        return {} if model.attention == "auto" else {"attn_implementation": model.attention}
    if not hasattr(config, "vision_config"):
        raise RunError(
            f"model.vision_attention is {model.vision_attention!r}, but a {config.model_type} has "
            "no vision tower; leave it out"
        )
    parts = {"vision_config": model.vision_attention}
    if model.attention != "auto":
        parts |= dict.fromkeys(("", "text_config"), model.attention)
    return {"attn_implementation": parts}


def _dtype(model: Model) -> torch.dtype:
    """Return the dtype of the weights; ``auto`` here is that of the CPU."""
    dtype: torch.dtype = getattr(torch, dtype_on(model.dtype, torch.device("cpu")))
    return dtype


def _load_model(source: Source, model: Model) -> Any:
    config, where = _read_config(source, model)
    # The configuration of a GGUF is not read again: its header takes seconds.
    options: dict[str, Any] = {"dtype": _dtype(model), "config": config}
    options |= _attention(config, model)
    loaded = _auto_class(config).from_pretrained(source.weights, **where, **options)
    # A generation loop that comes with the model may draw from another distribution.
    vars(loaded).pop("generate", None)
    if source.gguf_file is not None:
        _forget_quantization(loaded)
    # A configuration that cannot be saved fails here, not at the first checkpoint.
    with TemporaryDirectory() as folder:
        loaded.config.save_pretrained(folder)
    return loaded


def generation_settings(weights: str) -> str | None:
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
    """Return the auto class of a configuration: with images or of text alone."""
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
