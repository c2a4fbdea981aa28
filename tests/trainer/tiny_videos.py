"""Tiny models that see videos, and prompts of all kinds for them.

Transformers resizes videos by torchvision, whose wheels ask for PyTorch with CUDA. Where it is
missing, stand-ins cut frames into patches; the processors around them are the real ones.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers.image_processing_utils import BatchFeature
from transformers.utils import is_torchvision_available
from transformers.video_processing_utils import BaseVideoProcessor

from g2rpo_trainer.config import Data
from g2rpo_trainer.data import open_source
from g2rpo_trainer.model.policy_model import make_policy
from g2rpo_trainer.model.processors import without_videos
from g2rpo_trainer.record import Record

from ..films import film
from . import tiny_models

VIDEO_FAMILIES = ("qwen2_5_vl", "qwen3_vl", "smolvlm")

_PLACEHOLDERS = {
    "qwen2_5_vl": "<|vision_start|><|video_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|video_pad|><|vision_end|>",
    "smolvlm": "<video>",
}
_PATCH, _MERGE = 8, 2


def build_policy(family: str, *, seed: int = 0, **options: Any) -> Any:
    """Return a policy that takes videos; its model has room for their tokens."""
    processor = build_processor(family)
    config = tiny_models.build_config(family, processor.tokenizer)
    config.get_text_config().max_position_embeddings = 4096
    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    return make_policy(model, processor, **options)


def build_processor(family: str) -> Any:
    """Return a processor with an image and a video processor."""
    images = tiny_models.build_processor(family)
    template = images.tokenizer.chat_template.replace(
        "else part.text", f"else '{_PLACEHOLDERS[family]}' if part.type == 'video' else part.text"
    )
    kind, more = {
        "qwen2_5_vl": (transformers.Qwen2_5_VLProcessor, {}),
        "qwen3_vl": (transformers.Qwen3VLProcessor, {}),
        "smolvlm": (transformers.SmolVLMProcessor, {"image_seq_len": 4}),
    }[family]
    parts, more = (images.image_processor, images.tokenizer), {**more, "chat_template": template}
    if is_torchvision_available():
        return kind(*parts, _video_processor(family), **more)
    processor = without_videos(kind)(*parts, None, **more)
    stand_in = _Squares if family == "smolvlm" else _Patches
    processor.video_processor = stand_in(do_convert_rgb=False)
    return processor


def make_records(family: str) -> list[Record]:
    """Return four records as a source gives them: a video, none, an image, and two videos or one.

    Of SmolVLM a prompt holds images or videos, and of several videos all must have as many frames.
    """
    long, short = {"bytes": film(12, 4)}, {"bytes": film(3, 2, size=(40, 24))}
    image = tiny_models.make_records(family)[2].images[0]
    last = {"videos": [short]} if family == "smolvlm" else {"videos": [short, long], "image": image}
    rows = [
        {"problem": f"What is {number} + 1?", "answer": number + 1, **shown}
        | {"problem_type": "numerical", "task_type": "maths" if number % 2 else "ocr"}
        for number, shown in enumerate([{"videos": [long]}, {}, {"image": image}, last])
    ]
    data = Data(video_frames=6, eval_fraction=0.5)
    source = open_source(data, rows=rows)
    found = source.training_records(seed=0, position=0, prompts=8)
    found += [record for task in source.tasks for record in source.held_out_records(task, 8)]
    by_place = {record.place: record for record in found}
    return [by_place[place] for place in sorted(by_place)]


def _video_processor(family: str) -> Any:
    if family == "smolvlm":
        square = {"longest_edge": 32}
        return transformers.SmolVLMVideoProcessor(size=square, max_image_size=square)
    kind, pixels = {
        "qwen2_5_vl": (transformers.Qwen2VLVideoProcessor, 32 * 32),
        "qwen3_vl": (transformers.Qwen3VLVideoProcessor, 32 * 32 * 6),
    }[family]
    return kind(patch_size=_PATCH, size={"shortest_edge": 16 * 16, "longest_edge": pixels})


def _resized(video: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return torch.nn.functional.interpolate(video.float() / 127.5 - 1, (height, width))


class _Patches(BaseVideoProcessor):
    """Cuts videos as Qwen-VL takes them: two frames to a patch, patches in blocks of 2 × 2."""

    temporal_patch_size, merge_size = 2, _MERGE

    def _preprocess(self, videos: Any, **_: Any) -> BatchFeature:
        cut = [self._cut(video) for video in videos]
        grids = [grid for _, grid in cut]
        pixels = torch.cat([patches for patches, _ in cut])
        return BatchFeature({"pixel_values_videos": pixels, "video_grid_thw": torch.tensor(grids)})

    def _cut(self, video: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int, int]]:
        if len(video) < 2:
            raise ValueError("a video must have at least 2 frames")
        # Upright videos stay upright, so that grids differ.
        block = _PATCH * _MERGE
        rows, columns = (max(size // block, 1) for size in video.shape[2:])
        video = _resized(video, rows * block, columns * block)
        if len(video) % 2:
            video = torch.cat([video, video[-1:]])
        shape = (-1, 2, 3, rows, _MERGE, _PATCH, columns, _MERGE, _PATCH)
        patches = video.reshape(shape).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        grid = (len(video) // 2, rows * _MERGE, columns * _MERGE)
        return patches.reshape(-1, 3 * 2 * _PATCH**2), grid


class _Squares(BaseVideoProcessor):
    """Makes squares of frames, as SmolVLM takes them."""

    model_input_names = ("pixel_values", "pixel_attention_mask")

    def _preprocess(self, videos: Any, **_: Any) -> BatchFeature:
        pixels = torch.stack([_resized(video, 32, 32) for video in videos])
        mask = torch.ones_like(pixels[:, :, 0], dtype=torch.int64)
        return BatchFeature({"pixel_values": pixels, "pixel_attention_mask": mask})
