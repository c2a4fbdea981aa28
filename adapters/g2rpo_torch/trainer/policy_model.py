"""Load a policy: the model, its processor, and the tokens that it must never sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from g2rpo.run.errors import RunError
from g2rpo_torch.policy import policy_path

from .sharing import Sharing

BUILTIN = "builtin"


@dataclass(frozen=True)
class Policy:
    """A model that answers questions about images, with what is needed to talk to it.

    Attributes
    ----------
    model : transformers.PreTrainedModel
        In training or evaluation mode, on its device.
    processor : transformers.ProcessorMixin
        Turns chats and images into model inputs, padded on the left.
    eos_ids : tuple of int
        Tokens that end a response.
    banned_ids : Tensor, int64
        Tokens without a meaning inside a response: image placeholders, padding, roles. A sampled
        placeholder would make the next forward pass look for an image that is not there, so these
        are masked before every softmax, in generation and in the log-probability passes alike.
    sharing : Sharing
        Whether a prompt is computed once for all of its responses.
    """

    model: Any
    processor: Any
    eos_ids: tuple[int, ...]
    banned_ids: torch.Tensor
    sharing: Sharing = field(default_factory=Sharing)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    @property
    def tokenizer(self) -> Any:
        """The tokenizer inside the processor."""
        return self.processor.tokenizer

    def masked_logits(self, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """Return float32 logits over the temperature, with −inf at the banned tokens."""
        scaled = logits.float() / temperature
        return scaled.index_fill(-1, self.banned_ids, -torch.inf)

    def save(self, folder: Path) -> None:
        """Write model and processor in Hugging Face format."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def load_policy(
    name: str,
    *,
    device: torch.device | str,
    dtype: str = "float32",
    shared_prompts: Literal["auto", "off"] = "auto",
) -> Policy:
    """Load a policy from the package, a folder or the hub.

    Parameters
    ----------
    name : str
        ``"builtin"`` for the embedded policy, else a folder or a hub id of a model that
        ``AutoModelForImageTextToText`` reads. Code from the model's repository is never run.
    device : torch.device or str
        Where the model goes.
    dtype : {"float32", "bfloat16"}
        Of the weights.
    shared_prompts : {"auto", "off"}
        Compute a prompt once for all of its responses where the model allows it, or never.

    Returns
    -------
    Policy
        With the model in evaluation mode: sampling and updates must see the same function, so
        dropout stays off.

    Raises
    ------
    RunError
        If there is no such model, or it is of another kind.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    source = str(policy_path()) if name == BUILTIN else name
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(
            source, dtype=getattr(torch, dtype)
        )
        processor = AutoProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"--model is {name!r}, which cannot be loaded; it must be 'builtin', a folder or a hub "
            f"id of an image-text-to-text model ({reason})"
        ) from error
    return make_policy(model.to(device).eval(), processor, Sharing(shared_prompts))


def make_policy(model: Any, processor: Any, sharing: Sharing | None = None) -> Policy:
    """Bind a model and a processor, and find the ends and the banned tokens."""
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    declared = model.generation_config.eos_token_id
    ends = declared if isinstance(declared, list) else [declared]
    eos_ids = {end for end in (*ends, tokenizer.eos_token_id) if end is not None}
    placeholders = {getattr(model.config, "image_token_id", None)} - {None}
    banned = (set(tokenizer.all_special_ids) | placeholders) - eos_ids
    return Policy(
        model=model,
        processor=processor,
        eos_ids=tuple(sorted(eos_ids)),
        banned_ids=torch.tensor(sorted(banned), dtype=torch.int64, device=model.device),
        sharing=sharing or Sharing(),
    )
