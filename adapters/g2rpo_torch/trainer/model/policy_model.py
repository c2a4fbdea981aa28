"""A policy: a model, what turns chats into its inputs, and the tokens it must never sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .lora import without_adapter
from .trials import Trials

# Beginnings of the names under which configurations keep the tokens of images, videos and sound.
_PLACEHOLDERS = ("image", "video", "audio", "vision", "boi", "eoi")


@dataclass(frozen=True)
class Policy:
    """A model that answers questions, with what is needed to talk to it.

    Attributes
    ----------
    model : transformers.PreTrainedModel
        In evaluation mode, on its device.
    processor : transformers.ProcessorMixin or PreTrainedTokenizerBase
        Turns chats and images into model inputs, padded on the left; a tokenizer where the model
        takes text only.
    eos_ids : tuple of int
        Tokens that end a response.
    banned_ids : Tensor, int64
        Tokens without a meaning inside a response: image placeholders, padding, roles. A sampled
        placeholder would make the next forward pass look for an image that is not there, so these
        are masked before every softmax, in generation and in the log-probability passes alike.
    trials : Trials
        Which shortcuts the model allows.
    name : str
        What the model is called in messages.
    max_prompt_length : int or None
        Longest prompt in tokens; None for no limit.
    """

    model: Any
    processor: Any
    eos_ids: tuple[int, ...]
    banned_ids: torch.Tensor
    trials: Trials = field(default_factory=Trials)
    name: str = "the model"
    max_prompt_length: int | None = None

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    @property
    def tokenizer(self) -> Any:
        """The tokenizer inside the processor, or the processor if it is one itself."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def takes_images(self) -> bool:
        """Whether prompts may hold images."""
        return hasattr(self.processor, "image_processor")

    @property
    def has_adapter(self) -> bool:
        """Whether a low-rank adapter is trained in place of the weights."""
        return bool(getattr(self.model, "_hf_peft_config_loaded", False))

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Be the policy from before training inside the context, if an adapter is trained.

        Without an adapter nothing changes: then the reference is a policy of its own.
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
        """Write model and processor in Hugging Face format; of an adapter only itself.

        ``weights`` are those of a model that is divided over processes.
        """
        self.model.save_pretrained(folder, state_dict=weights)
        self.processor.save_pretrained(folder)


def make_policy(
    model: Any,
    processor: Any,
    trials: Trials | None = None,
    *,
    name: str = "the model",
    max_prompt_length: int | None = None,
) -> Policy:
    """Bind a model and a processor or tokenizer, and find the ends and the banned tokens."""
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    declared = model.generation_config.eos_token_id
    ends = declared if isinstance(declared, list) else [declared]
    eos_ids = {end for end in (*ends, tokenizer.eos_token_id) if end is not None}
    vocabulary = model.config.get_text_config().vocab_size
    banned = {
        token
        for token in {*tokenizer.all_special_ids, *_placeholders(model.config)} - eos_ids
        if token < vocabulary
    }
    return Policy(
        model=model,
        processor=processor,
        eos_ids=tuple(sorted(eos_ids)),
        banned_ids=torch.tensor(sorted(banned), dtype=torch.int64, device=model.device),
        trials=trials or Trials(),
        name=name,
        max_prompt_length=max_prompt_length,
    )


def _placeholders(config: Any) -> set[int]:
    known = {name: value for name, value in config.to_dict().items() if isinstance(value, int)}
    return {
        value
        for name, value in known.items()
        if name.startswith(_PLACEHOLDERS) and name.endswith(("token_id", "token_index"))
    }
