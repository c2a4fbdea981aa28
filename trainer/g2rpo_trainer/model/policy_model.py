"""A policy: a model, its processor, and the tokens that end a response or must not be sampled."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from g2rpo_trainer.errors import RunError

from .adapting import without_adapter
from .chat_template import (
    EndOfTurn,
    end_of_turn,
    framing_ids,
    ids_of,
    special_ids,
    tag_ids,
    template_of,
    tokenizer_of,
)

GENERATION_SETTINGS = "generation_config.json"
ALIGNED = 64
"""Multiple of row lengths on CUDA, where kernels are planned for each new shape."""
# Multiple of the size of buffers of a compiled step, which is compiled for each.
_COMPILED = 256
# Names under which configurations, processors and tokenizers keep the tokens of images, videos and
# sound, as texts and as numbers.
_MEDIA_TEXT = re.compile(r"(.*(image|img|video|audio|vision|media)|[be]o[ia]_).*token")
_MEDIA_ID = re.compile(f"{_MEDIA_TEXT.pattern}_(id|index)")
# Names of tokens without a meaning inside a text.
_NAMED = ("bos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Shortcuts:
    """Faster ways to compute the same, which not every architecture allows.

    :func:`g2rpo_trainer.shortcuts.choose_shortcuts` sets them. They change results by rounding, so
    a resumed run keeps those of its checkpoint.

    Attributes
    ----------
    shared_rollouts : bool
        Sample all responses to a prompt from one KV cache of it.
    packed_rows : bool
        Compute given responses in one row behind their prompt.
    without_logits : bool
        Compute log-probabilities from hidden states, a tile of logits at a time.
    """

    shared_rollouts: bool = False
    packed_rows: bool = False
    without_logits: bool = False


@dataclass(frozen=True)
class Policy:
    """A model with its processor and special tokens.

    Attributes
    ----------
    model : transformers.PreTrainedModel
        In evaluation mode, on its device.
    processor : transformers.ProcessorMixin or PreTrainedTokenizerBase
        Processor of chats and images, padding on the left; a tokenizer where the model takes text
        only.
    eos_ids : tuple of int
        Tokens that end a response: those of the model and the tokenizer, and the one that closes a
        turn in the chat template.
    banned_ids : Tensor, int64
        Tokens without a meaning inside a response: image placeholders, padding, and tokens that
        open turns in a prompt. A sampled placeholder would make the next forward pass look for an
        image that is not there, so these are masked before every softmax, in generation and in the
        log-probability passes alike. Tokens that end a response and the tags of the answer format
        are never among them.
    shortcuts : Shortcuts
        Faster ways of computing that the model allows; by default none.
    name : str
        Name of the model in messages.
    max_prompt_length : int or None
        Longest prompt in tokens; None for no limit.
    closing_text : str or None
        Text by which the chat template closes a turn, where that is no single token; it ends a
        response too.
    generation_settings : str or None
        Text of the model's own ``generation_config.json``, for the folders that are saved. Nothing
        of it reaches the sampling, but for the tokens that end a response.
    pad_to_multiple_of : int
        Rows and KV caches are padded to a multiple of so many tokens, 64 on CUDA. More than 1 also
        decodes in buffers of a fixed size (:mod:`g2rpo_trainer.decoding`).
    block_masks : bool
        Packed rows skip pairs that no token sees (:mod:`g2rpo_trainer.block_attention`).
    compiled_step : callable or None
        Decodes a token in place of the plain step
        (:class:`g2rpo_trainer.decoding.CompiledStep`).
    """

    model: Any
    processor: Any
    eos_ids: tuple[int, ...]
    banned_ids: torch.Tensor
    shortcuts: Shortcuts = Shortcuts()
    name: str = "the model"
    max_prompt_length: int | None = None
    closing_text: str | None = None
    generation_settings: str | None = None
    pad_to_multiple_of: int = 1
    block_masks: bool = False
    compiled_step: Callable[..., None] | None = None

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    @property
    def tokenizer(self) -> Any:
        """The tokenizer inside the processor, or the processor if it is one itself."""
        return tokenizer_of(self.processor)

    @property
    def harmless_id(self) -> int:
        """A token that may be sampled, to stand where a finite log-probability is needed."""
        if self.eos_ids:
            return self.eos_ids[0]
        banned = {*self.banned_ids.tolist()}
        return next(token for token in itertools.count() if token not in banned)

    @property
    def takes_images(self) -> bool:
        """Whether prompts may hold images."""
        return hasattr(self.processor, "image_processor")

    @property
    def takes_videos(self) -> bool:
        """Whether prompts may hold videos."""
        return getattr(self.processor, "video_processor", None) is not None

    @property
    def has_adapter(self) -> bool:
        """Whether a low-rank adapter is trained in place of the weights."""
        return bool(getattr(self.model, "_hf_peft_config_loaded", False))

    def padding(self, length: int) -> int:
        """Return the tokens of padding for a row of so many tokens."""
        return -length % self.pad_to_multiple_of

    def buffer_size(self, length: int) -> int:
        """Return the slots of a buffer of the KV cache for a row of so many tokens."""
        multiple = self.pad_to_multiple_of if self.compiled_step is None else _COMPILED
        return length + -length % multiple

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Switch the adapter off inside the context; without one nothing changes.

        The reference of a policy without an adapter is a policy of its own.
        """
        if not self.has_adapter:
            yield
            return
        with without_adapter(self.model):
            yield

    def masked_logits(self, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """Return float32 logits over the temperature, with −inf at the banned tokens."""
        scaled = logits.float() / temperature
        return scaled.index_fill(-1, self.banned_ids, -torch.inf)

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Write model and processor in Hugging Face format; with an adapter, only the adapter.

        ``weights`` are the gathered weights of a sharded model.
        """
        if self.has_adapter:
            # peft would store the base weights of an adapted embedding or output layer, too.
            everything = (weights or self.model.state_dict()).items()
            weights = {name: weight for name, weight in everything if ".base_layer." not in name}
        self.model.save_pretrained(folder, state_dict=weights)
        self.processor.save_pretrained(folder)
        if self.generation_settings is not None:
            (folder / GENERATION_SETTINGS).write_text(self.generation_settings, encoding="utf-8")


def make_policy(
    model: Any,
    processor: Any,
    *,
    name: str = "the model",
    max_prompt_length: int | None = None,
) -> Policy:
    """Return a policy, with the end tokens and the banned tokens of a model and its processor.

    Raises
    ------
    RunError
        If the tokenizer has no token to pad with.
    """
    tokenizer = tokenizer_of(processor)
    tokenizer.padding_side = "left"
    vocabulary = model.config.get_text_config().vocab_size
    has_template = template_of(processor) is not None
    closing = end_of_turn(processor) if has_template else EndOfTurn()
    declared = model.generation_config.eos_token_id
    ends = declared if isinstance(declared, list) else [declared]
    ends = [*ends, tokenizer.eos_token_id, closing.token]
    eos_ids = {end for end in ends if end is not None and end < vocabulary}
    banned = _nowhere_in_a_text(model.config, processor)
    if has_template:
        banned |= framing_ids(processor)
    banned -= {*eos_ids, *tag_ids(tokenizer)}
    # Last, because a token that is used as padding may have a meaning of its own.
    if tokenizer.pad_token_id is None:
        _choose_padding(tokenizer, eos_ids, name)
    return Policy(
        model=model,
        processor=processor,
        eos_ids=tuple(sorted(eos_ids)),
        banned_ids=torch.tensor(
            sorted(token for token in banned if 0 <= token < vocabulary),
            dtype=torch.int64,
            device=model.device,
        ),
        name=name,
        max_prompt_length=max_prompt_length,
        closing_text=closing.text,
        pad_to_multiple_of=ALIGNED if model.device.type == "cuda" else 1,
    )


def _choose_padding(tokenizer: Any, eos_ids: set[int], name: str) -> None:
    candidates = (tokenizer.eos_token_id, *sorted(eos_ids), *sorted(special_ids(tokenizer)))
    chosen = next((token for token in candidates if token is not None), None)
    if chosen is None:
        raise RunError(
            f"the tokenizer of {name} has no special token, so nothing can pad the prompts of a "
            "batch; name a pad_token in its tokenizer_config.json"
        )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(chosen)


def _nowhere_in_a_text(config: Any, processor: Any) -> set[int]:
    """Return padding and its like, and the placeholders of images, videos and sound."""
    tokenizer = tokenizer_of(processor)
    found = {getattr(tokenizer, f"{name}_id") for name in _NAMED}
    for settings in (config.to_dict(), vars(processor), tokenizer.special_tokens_map):
        found.update(_media_tokens(settings))
    texts = {value for value in found if isinstance(value, str)}
    return ids_of(tokenizer, texts) | (found - texts - {None})


def _media_tokens(settings: Mapping[str, Any]) -> Iterator[int | str]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _media_tokens(value)
        elif type(value) in (str, int):
            pattern = _MEDIA_TEXT if isinstance(value, str) else _MEDIA_ID
            if pattern.fullmatch(str(name)):
                yield value
