"""Tiny random models of many families, with processors made from scratch: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from PIL import Image

from g2rpo_trainer.model.processors import without_videos
from g2rpo_trainer.record import Record

IMAGE_FAMILIES = ("qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3", "llava", "gemma3")
TEXT_FAMILIES = ("llama", "qwen3")
FAMILIES = (*IMAGE_FAMILIES, *TEXT_FAMILIES)

# What stands for an image in a chat, and what else a family's processor asks the tokenizer for.
PLACEHOLDERS = {
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "smolvlm": "<image>",
    "idefics3": "<image>",
    "llava": "<image>",
    "gemma3": "<start_of_image>",
}
_TILES = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
_SMOL = ["<image>", "<video>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
_QWEN = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_EXTRA_TOKENS = {
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "smolvlm": [*_SMOL, *_TILES],
    "idefics3": [*_SMOL, *_TILES],
    "llava": ["<image>"],
    "gemma3": ["<start_of_image>", "<image_soft_token>", "<end_of_image>"],
}
_NAMED_TOKENS = {
    "gemma3": {
        "boi_token": "<start_of_image>",
        "image_token": "<image_soft_token>",
        "eoi_token": "<end_of_image>",
    }
}

_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
_QWEN_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "patch_size": 8,
    "out_hidden_size": 32,
}
_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}


def build_model(family: str, tokenizer: Any, *, seed: int = 0) -> Any:
    """Return a model with random weights that are large enough for every token to matter."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM if family in TEXT_FAMILIES else _ImageText
    built = model.from_config(build_config(family, tokenizer)).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    return built


_ImageText = transformers.AutoModelForImageTextToText


def build_config(family: str, tokenizer: Any) -> Any:
    token = tokenizer.convert_tokens_to_ids
    text = {**_TEXT, "vocab_size": len(tokenizer)}
    if family == "llama":
        return transformers.LlamaConfig(**text)
    if family == "qwen3":
        return transformers.Qwen3Config(**text, head_dim=8)
    if family.startswith("qwen"):
        ids = {
            "image_token_id": token("<|image_pad|>"),
            "video_token_id": token("<|video_pad|>"),
            "vision_start_token_id": token("<|vision_start|>"),
            "vision_end_token_id": token("<|vision_end|>"),
            "tie_word_embeddings": False,
        }
        text = {**text, "head_dim": 8, "rope_parameters": _ROPE}
        if family == "qwen3_vl":
            vision = {**_QWEN_VISION, "deepstack_visual_indexes": [0, 1]}
            return transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
        vision = {**_QWEN_VISION, "window_size": 32, "fullatt_block_indexes": [1]}
        return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    if family in ("smolvlm", "idefics3"):
        kind = {"smolvlm": transformers.SmolVLMConfig, "idefics3": transformers.Idefics3Config}
        return kind[family](
            vision_config=_SIGLIP,
            text_config=transformers.LlamaConfig(**text),
            image_token_id=token("<image>"),
            pad_token_id=0,
            scale_factor=2,
            tie_word_embeddings=False,
        )
    if family == "gemma3":
        return transformers.Gemma3Config(
            text_config={
                **text,
                "head_dim": 8,
                "sliding_window": 24,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            vision_config={**_SIGLIP, "vision_use_head": False},
            mm_tokens_per_image=4,
            boi_token_index=token("<start_of_image>"),
            eoi_token_index=token("<end_of_image>"),
            image_token_index=token("<image_soft_token>"),
            tie_word_embeddings=False,
        )
    return transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_SIGLIP),
        text_config=transformers.LlamaConfig(**text),
        image_token_index=token("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )


def build_tokenizer(family: str) -> Any:
    """Return a tokenizer of single bytes, with the special tokens of the family."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<pad>", "<bos>", "<eos>", "<system>", "<user>", "<assistant>"]
    special += _EXTRA_TOKENS.get(family, [])
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=special[3:],
        **_NAMED_TOKENS.get(family, {}),
    )
    tokenizer.chat_template = chat_template(PLACEHOLDERS.get(family))
    return tokenizer


def chat_template(placeholder: str | None) -> str:
    """Return a template; contents are lists of parts where there is a placeholder for images."""
    parts = (
        "{{ message.content }}"
        if placeholder is None
        else "{% for part in message.content %}"
        "{{ '" + placeholder + "' if part.type == 'image' else part.text }}{% endfor %}"
    )
    return (
        "<bos>{% for message in messages %}{{ '<' + message.role + '>' }}" + parts + "{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )


def build_processor(family: str) -> Any:
    """Return what the family's models are asked through: a processor, or only a tokenizer."""
    tokenizer = build_tokenizer(family)
    if family in TEXT_FAMILIES:
        return tokenizer
    template = {"chat_template": tokenizer.chat_template}
    if family.startswith("qwen"):
        images = transformers.Qwen2VLImageProcessorPil(
            patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
        )
        kind = {
            "qwen2_5_vl": transformers.Qwen2_5_VLProcessor,
            "qwen3_vl": transformers.Qwen3VLProcessor,
        }[family]
        return without_videos(kind)(images, tokenizer, None, **template)
    if family == "gemma3":
        images = transformers.Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
        return transformers.Gemma3Processor(images, tokenizer, image_seq_length=4, **template)
    if family == "llava":
        square = {"height": 32, "width": 32}
        images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square)
        return transformers.LlavaProcessor(
            images,
            tokenizer,
            patch_size=8,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            **template,
        )
    sizes = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    if family == "idefics3":
        images = transformers.Idefics3ImageProcessorPil(**sizes)
        return transformers.Idefics3Processor(images, tokenizer, image_seq_len=4, **template)
    images = transformers.SmolVLMImageProcessorPil(**sizes)
    kind = without_videos(transformers.SmolVLMProcessor)
    return kind(images, tokenizer, None, image_seq_len=4, **template)


def save(family: str, folder: Any, *, seed: int = 0) -> None:
    """Write model and processor into a folder, as they would come from the hub."""
    processor = build_processor(family)
    tokenizer = getattr(processor, "tokenizer", processor)
    build_model(family, tokenizer, seed=seed).save_pretrained(folder)
    processor.save_pretrained(folder)


def make_records(family: str) -> list[Record]:
    """Return four questions: two images of different sizes, none, one, and none."""
    images = [_image(24, 40, 0), _image(48, 32, 1), _image(32, 32, 2)]
    each = [images[:2], [], images[2:], []] if family in IMAGE_FAMILIES else [[]] * 4
    return [
        Record(
            problem=f"What is {number} + 1?" + " Hurry!" * number,
            answer=str(number + 1),
            problem_type="numerical",
            task="maths" if number % 2 else "ocr",
            images=shown,
        )
        for number, shown in enumerate(each)
    ]


def _image(width: int, height: int, seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(values.numpy())
