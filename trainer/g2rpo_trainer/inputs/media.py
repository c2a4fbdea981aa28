"""Images and videos of a record, as a model's processor takes them."""

from __future__ import annotations

from typing import Any

from g2rpo._extras import needs
from g2rpo_trainer.data.videos import Clip
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.record import BrokenRecord, Record

from ..model.policy_model import Policy

# Processors ask how many frames a second there are, and which of them they get. By this clock the
# frames stand where they are shown, also where a video has them at uneven distances [1/s].
_CLOCK = 1000


def takes_videos(policy: Policy) -> bool:
    """Tell whether prompts may hold videos."""
    return getattr(policy.processor, "video_processor", None) is not None


def refuse_media(policy: Policy, record: Record) -> None:
    """Raise if a record has images or videos that a policy cannot see.

    Raises
    ------
    BrokenRecord
        If the model takes none.
    RunError
        If it takes videos, but a library is missing.
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
    if takes_videos(policy):
        _refuse_clash(policy, record)
        return
    if hasattr(policy.processor, "video_settings"):
        # Every video would be left out, and the fault is not theirs.
        raise RunError(
            needs(f"the processor of {policy.name}", "torchvision for videos", extra="video")
        )
    raise BrokenRecord(
        f"has {_count(len(videos), 'video')}, but the processor of {policy.name} takes none; name "
        "a model that takes videos by --model, or leave such records out"
    )


def processor_media(record: Record) -> dict[str, Any]:
    """Return the images and videos of a record, decoded, as arguments of a processor.

    Returns
    -------
    dict
        ``images``, ``videos`` (F, 3, H, W) uint8 and ``videos_kwargs``, as far as there are any.
        The processor is told when the frames are shown, and that it must not choose among them.

    Raises
    ------
    BrokenRecord
        If a video cannot be decoded.
    """
    media: dict[str, Any] = {}
    if record.images:
        media["images"] = [list(record.images)]
    clips = [video.read() for video in record.videos]
    if clips:
        # Channels first: that can be told from the shape, whatever the size.
        media["videos"] = [clip.frames.transpose(0, 3, 1, 2) for clip in clips]
        metadata = [_metadata(clip) for clip in clips]
        media["videos_kwargs"] = {"do_sample_frames": False, "video_metadata": metadata}
    return media


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
