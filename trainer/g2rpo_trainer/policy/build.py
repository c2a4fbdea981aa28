"""The embedded policy before training: a small LLaVA, its tokenizer and its processor."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

from g2rpo_trainer.tasks.canvas import PATCH, SIZE

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

IMAGE_TOKENS = (SIZE // PATCH) ** 2

_CONTROL = ["<pad>", "<bos>", "<eos>", "<unk>", "<image>", "<user>", "<assistant>"]
_TAGS = ["<think>", "</think>", "<answer>", "</answer>"]

# Every word of the built-in tasks is one token, with and without a space before it; whatever else
# people write is spelled in printable ASCII.
_WORDS = """
Give the box of as in pixels x1 y1 x2 y2 How many are image Where is from What value The axis
goes to Read text expression I count read top middle bottom left center right above below
red green blue orange purple black circle square triangle circles squares triangles bar point
"""

# The image stands before the question. A system message has no place in so small a model.
CHAT_TEMPLATE = (
    "{{ '<bos>' }}{% for message in messages if message.role != 'system' %}"
    "{{ '<' + message.role + '>' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}"
    "{% if message.role == 'assistant' %}{{ '<eos>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words, single characters and tags.

    Returns
    -------
    PreTrainedTokenizerFast
        Decoding an encoded text gives the text back, for printable ASCII.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # A unigram model takes the segmentation with the highest sum of scores: words before letters.
    space = "▁"
    characters = [c for c in string.printable if c.isprintable() and c != " "]
    words = [word for word in _WORDS.split() if len(word) > 1]
    pieces = [(space + word, -1.0) for word in words] + [(word, -1.0) for word in words]
    pieces += [(character, -10.0) for character in [space, *characters]]
    control = [(token, 0.0) for token in _CONTROL]
    tokenizer = Tokenizer(models.Unigram(control + pieces, unk_id=_CONTROL.index("<unk>")))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", "<user>", "<assistant>"],
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
    # Not special, so that they survive decoding and the format reward can see them; added, so that
    # nothing around them ever merges with them.
    fast.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in _TAGS])
    return fast


def build_processor() -> LlavaProcessor:
    """Return the processor that turns chats with images into model inputs."""
    from transformers import LlavaProcessor, SiglipImageProcessorPil

    return LlavaProcessor(
        image_processor=SiglipImageProcessorPil(
            size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: Any, *, seed: int) -> LlavaForConditionalGeneration:
    """Return the randomly initialised model.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
        Gives the size of the vocabulary and the special tokens.
    seed : int
        Seed of PyTorch's generator, which is set.

    Returns
    -------
    LlavaForConditionalGeneration
        In float32 on the CPU.
    """
    import torch
    from transformers import (
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        SiglipVisionConfig,
    )

    torch.manual_seed(seed)
    vision = SiglipVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    configuration = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(configuration)
