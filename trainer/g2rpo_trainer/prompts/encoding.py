"""From a record to model inputs: chat, images and videos through the model's processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from g2rpo._extras import needs
from g2rpo_trainer.data.videos import Clip
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.record import BrokenRecord, Record

from ..model.policy_model import Policy
from .batching import Inputs, Prompts, collate
from .chat import Chat, chat_of

# Processors ask for a frame rate and the numbers of the frames. At this rate the numbers are the
# times of the frames, also where their distances are uneven [1/s].
_CLOCK = 1000


@dataclass(frozen=True)
class Prompt:
    """A record as a policy reads it; rendered and encoded once, when that is first asked for.

    Attributes
    ----------
    policy : Policy
        Owner of the processor.
    record : Record
        The prompt.
    """

    policy: Policy
    record: Record

    @classmethod
    def encoded(cls, policy: Policy, record: Record) -> Prompt:
        """Return the prompt of a record, encoded already; raises as :attr:`inputs`."""
        prompt = cls(policy, record)
        _ = prompt.inputs
        return prompt

    @cached_property
    def chat(self) -> Chat:
        """Text of the prompt; raises `BrokenRecord` if the template cannot render it."""
        return chat_of(self.policy, self.record)

    @cached_property
    def inputs(self) -> Inputs:
        """Model inputs of this prompt alone, on the CPU.

        Raises `BrokenRecord` if the prompt has an image or a video that the model does not take or
        that cannot be decoded, or more tokens than allowed.
        """
        policy = self.policy
        _refuse_media(policy, self.record)
        encoded = _with_media(self) if policy.takes_images else _text(self)
        tensors = {key: value for key, value in encoded.items() if isinstance(value, torch.Tensor)}
        if "cross_attention_mask" in tensors:
            raise RunError(
                f"{policy.name} reads images by a cross-attention mask, which this trainer cannot "
                "put into batches; name another model by --model"
            )
        _check_length(policy, tensors["input_ids"].shape[1])
        return tensors


def join_prompts(prompts: Sequence[Prompt]) -> Prompts:
    """Return the inputs of P prompts of one policy as a batch on its device.

    Some of the prompts may have images or videos and some not.

    Parameters
    ----------
    prompts : sequence of Prompt
        At least one.

    Returns
    -------
    Prompts
        ``input_ids`` and ``attention_mask`` (P, L) int64, and other inputs of the model, such as
        ``pixel_values``: see :class:`~g2rpo_trainer.prompts.batching.Prompts`.

    Raises
    ------
    RunError
        If a record is broken; the text names its place.
    """
    policy = prompts[0].policy
    encoded = [_inputs_or_place(prompt, number) for number, prompt in enumerate(prompts, 1)]
    batch = collate(encoded, policy.tokenizer.pad_token_id)
    on_device = {name: tensor.to(policy.device) for name, tensor in batch.items()}
    return Prompts(on_device, batch.rows_each)


def encode_prompts(policy: Policy, records: Sequence[Record]) -> Prompts:
    """Return the inputs of records as a batch, as :func:`join_prompts`."""
    return join_prompts([Prompt(policy, record) for record in records])


def _refuse_media(policy: Policy, record: Record) -> None:
    """Raise `BrokenRecord` if a record has images or videos that the model does not take.

    Raises `RunError` if it takes videos, but a library is missing.
    """
    images, videos = record.images, record.videos
    if (images or videos) and not policy.takes_images:
        count = _count(len(images), "image") if images else _count(len(videos), "video")
        raise BrokenRecord(
            f"has {count}, but {policy.name} takes text only; name an image-text model by --model, "
            "or train on text (data.source: builtin-text, or data.tasks)"
        )
    if not videos:
        return
    if policy.takes_videos:
        _refuse_clash(policy, record)
        return
    if hasattr(policy.processor, "video_settings"):
        # Not the fault of a record: without the library every video would be left out.
        raise RunError(
            needs(f"the processor of {policy.name}", "torchvision for videos", extra="video")
        )
    raise BrokenRecord(
        f"has {_count(len(videos), 'video')}, but the processor of {policy.name} takes none; name "
        "a model that takes videos by --model, or leave such records out"
    )


def _processor_media(record: Record) -> dict[str, Any]:
    """Return the images and decoded videos of a record as arguments of a processor.

    Those are ``images``, ``videos`` (F, 3, H, W) uint8 and ``videos_kwargs``, if there are any. The
    processor gets the times of the frames, and must not choose among them. Raises `BrokenRecord` if
    a video cannot be decoded.
    """
    media: dict[str, Any] = {}
    if record.images:
        media["images"] = [list(record.images)]
    clips = [video.read() for video in record.videos]
    if clips:
        # Channels first, which processors can tell from the shape at any size.
        media["videos"] = [clip.frames.transpose(0, 3, 1, 2) for clip in clips]
        metadata = [_metadata(clip) for clip in clips]
        media["videos_kwargs"] = {"do_sample_frames": False, "video_metadata": metadata}
    return media


def _inputs_or_place(prompt: Prompt, number: int) -> Inputs:
    try:
        return prompt.inputs
    except BrokenRecord as error:
        record = prompt.record
        name = record.place or f"prompt {number} of the batch (task {record.task})"
        raise RunError(f"{name}: {error}") from error


def _with_media(prompt: Prompt) -> Inputs:
    policy, text = prompt.policy, prompt.chat.text
    # Templates that write the token of a beginning themselves get no second one; others, such as
    # that of LLaVA 1.5, leave it to the tokenizer.
    begins = policy.tokenizer.bos_token
    has_begun = bool(begins) and text.startswith(begins)
    options = {"add_special_tokens": False} if has_begun else {}
    media = _processor_media(prompt.record)
    try:
        encoded: Inputs = policy.processor(text=[text], return_tensors="pt", **media, **options)
    except ValueError as error:
        raise BrokenRecord(f"the processor of {policy.name} refuses it ({error})") from error
    return encoded


def _text(prompt: Prompt) -> Inputs:
    # Templates of text models hold every special token themselves.
    encoded: Inputs = prompt.policy.tokenizer(
        [prompt.chat.text], add_special_tokens=False, return_tensors="pt"
    )
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


def _refuse_clash(policy: Policy, record: Record) -> None:
    parts = (policy.processor.image_processor, policy.processor.video_processor)
    images, videos = (set(part.model_input_names) for part in parts)
    if record.images and images & videos:
        # Of tensors of the same name one would be lost.
        raise BrokenRecord(
            f"has images and videos, but the processor of {policy.name} takes one kind a prompt; "
            "leave out the others"
        )


def _metadata(clip: Clip) -> dict[str, Any]:
    _, height, width, _ = clip.frames.shape
    return {
        "total_num_frames": max(round(clip.duration * _CLOCK), 1),
        "fps": _CLOCK,
        "frames_indices": [round(time * _CLOCK) for time in clip.times],
        "duration": clip.duration,
        "height": height,
        "width": width,
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number > 1)
