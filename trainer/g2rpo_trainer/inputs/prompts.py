"""From records to model inputs: chats with and without media, tokenised, padded on the left."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from g2rpo_trainer.errors import RunError
from g2rpo_trainer.record import BrokenRecord, Record

from ..model.policy_model import Policy
from .batching import (
    Inputs,
    Prompts,
    collate,
    extend_rows,
    select_rows,
    trim_padding,
)
from .chat import chat_text
from .media import processor_media, refuse_media

__all__ = [
    "Inputs",
    "Prompts",
    "encode_prompts",
    "extend_rows",
    "prompt_fault",
    "select_rows",
    "trim_padding",
]


def encode_prompts(policy: Policy, records: Sequence[Record]) -> Prompts:
    """Return the model inputs of P prompts, of which some may have images or videos and some not.

    Parameters
    ----------
    policy : Policy
        Whose processor and device are used.
    records : sequence of Record
        The prompts.

    Returns
    -------
    Prompts
        ``input_ids`` and ``attention_mask`` (P, L) int64, and what the model takes besides, such as
        ``pixel_values``: see :class:`~g2rpo_trainer.inputs.batching.Prompts`.

    Raises
    ------
    RunError
        If a prompt has an image or a video that the model cannot see or that cannot be decoded, or
        more tokens than fit.
    """
    encoded = [_encode_or_name(policy, record, number) for number, record in enumerate(records, 1)]
    prompts = collate(encoded, policy.tokenizer.pad_token_id)
    on_device = {name: tensor.to(policy.device) for name, tensor in prompts.items()}
    return Prompts(on_device, prompts.rows_each)


def prompt_fault(policy: Policy, record: Record) -> str | None:
    """Return why a policy cannot be asked a record's prompt, or None if it can."""
    try:
        _encode(policy, record)
    except BrokenRecord as error:
        return str(error)
    return None


def _encode_or_name(policy: Policy, record: Record, number: int) -> Inputs:
    try:
        return _encode(policy, record)
    except BrokenRecord as error:
        name = record.place or f"prompt {number} of the batch (task {record.task})"
        advice = "; data.skip_broken: true leaves such records out" if record.place else ""
        raise RunError(f"{name}: {error}{advice}") from error


def _encode(policy: Policy, record: Record) -> Inputs:
    refuse_media(policy, record)
    text = chat_text(policy, record)
    encoded = _with_media(policy, text, record) if policy.takes_images else _text(policy, text)
    tensors = {key: value for key, value in encoded.items() if isinstance(value, torch.Tensor)}
    if "cross_attention_mask" in tensors:
        raise RunError(
            f"{policy.name} reads images by a cross-attention mask, which this trainer cannot put "
            "into batches; name another model by --model"
        )
    _check_length(policy, tensors["input_ids"].shape[1])
    return tensors


def _with_media(policy: Policy, text: str, record: Record) -> Inputs:
    # A template that begins with the token of a beginning has said what it wants; others, such as
    # that of LLaVA 1.5, leave it to the tokenizer.
    begins = policy.tokenizer.bos_token
    has_begun = bool(begins) and text.startswith(begins)
    options = {"add_special_tokens": False} if has_begun else {}
    media = processor_media(record)
    try:
        encoded: Inputs = policy.processor(text=[text], return_tensors="pt", **media, **options)
    except ValueError as error:
        raise BrokenRecord(f"the processor of {policy.name} refuses it ({error})") from error
    return encoded


def _text(policy: Policy, text: str) -> Inputs:
    # Templates of text models hold every special token themselves.
    encoded: Inputs = policy.tokenizer([text], add_special_tokens=False, return_tensors="pt")
    return encoded


def _check_length(policy: Policy, length: int) -> None:
    longest = policy.max_prompt_length
    if longest is not None and length > longest:
        raise BrokenRecord(
            f"its prompt has {length} tokens, but at most {longest} are allowed "
            "(rollout.max_prompt_length, or what rollout.max_completion_length leaves of the "
            "model's context); shorten it, use smaller images or fewer "
            "frames (data.video_frames), or change the limit"
        )
