"""Models that say a given text after the chat template of a family, whatever they are asked.

Each token has one successor, with a probability of nearly 1: a hidden state is the token itself,
and the output layer maps it to the next one. So no token may come twice in what a model says.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import transformers

TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
BOXES = ["<|box_start|>", "<|box_end|>"]


class Family(NamedTuple):
    template: str
    special: list[str]
    """Tokens of the family; the first is ``eos_token``."""
    prompt_end: str
    """Token with which a prompt ends."""
    closes: str
    opened: str = ""
    system: bool = True
    """Whether system messages keep a place of their own."""


_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Ends of text that no turn ends with: that of a base model.
_QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_R1 = (
    "{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message.role == 'system' %}{% set ns.system = message.content %}{% endif %}{% endfor %}"
    "<｜begin▁of▁sentence｜>{{ ns.system }}{% for message in messages %}"
    "{% if message.role == 'user' %}<｜User｜>{{ message.content }}"
    "{% elif message.role == 'assistant' %}"
    "<｜Assistant｜>{{ message.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
_LLAMA = (
    "<|begin_of_text|>{% for message in messages %}<|start_header_id|>{{ message.role }}"
    "<|end_header_id|>\n\n{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_HEADER = ["<|start_header_id|>", "<|end_header_id|>"]
_GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<bos>{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{{ message.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# The system message stands in front of the last question.
_MISTRAL = (
    "<s>{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for message in messages %}{% if message.role == 'user' %}[INST] "
    "{% if loop.last and system %}{{ system }}\n\n{% endif %}{{ message.content }}[/INST]"
    "{% elif message.role == 'assistant' %} {{ message.content | trim }}</s>"
    "{% endif %}{% endfor %}"
)
_QWEN3 = _CHATML.replace(
    "<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
_DROPS_SYSTEM = _CHATML.replace("in messages", "in messages if message.role != 'system'")
_IGNORES_PROMPT = _CHATML.partition("{% if add")[0]
_OPEN_LAST = _CHATML.replace(
    "<|im_end|>\n",
    "{% if not (loop.last and message.role == 'assistant') %}<|im_end|>\n{% endif %}",
)

FAMILIES = {
    "chatml": Family(_CHATML, _QWEN, "\n", "<|im_end|>"),
    "chatml_open_last": Family(_OPEN_LAST, _QWEN, "\n", "<|im_end|>"),
    "llama3": Family(
        _LLAMA,
        [
            "<|end_of_text|>",
            "<|begin_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ],
        "\n",
        "<|eot_id|>",
    ),
    "gemma": Family(
        _GEMMA,
        ["<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
        "\n",
        "<end_of_turn>",
        system=False,
    ),
    "r1": Family(
        _R1,
        ["<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"],
        "\n",
        "<｜end▁of▁sentence｜>",
        opened="<think>\n",
    ),
    "qwen3_without_thinking": Family(
        _QWEN3, _QWEN, "\n", "<|im_end|>", opened="<think>\n\n</think>\n\n"
    ),
    "mistral": Family(_MISTRAL, ["</s>", "<s>", "[INST]", "[/INST]"], "[/INST]", "</s>"),
    "drops_system": Family(_DROPS_SYSTEM, _QWEN, "\n", "<|im_end|>", system=False),
    "ignores_prompt": Family(_IGNORES_PROMPT, _QWEN, "\n", "<|im_end|>"),
}


def build_tokenizer(family: Family, *, eos: bool = True, special_tags: bool = True) -> Any:
    """Return a tokenizer of single bytes and the family's tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = [*family.special, *BOXES, *(TAGS if special_tags else [])]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        additional_special_tokens=special,
        **({"eos_token": family.special[0]} if eos else {}),
    )
    if not special_tags:
        tokenizer.add_tokens([AddedToken(tag, special=False) for tag in TAGS])
    tokenizer.chat_template = family.template
    return tokenizer


def save(
    folder: Any, family: Family, said: str, *, eos: bool = True, special_tags: bool = True
) -> None:
    """Write a model that says a text after the end of a prompt."""
    tokenizer = build_tokenizer(family, eos=eos, special_tags=special_tags)
    spoken = tokenizer(family.prompt_end + said, add_special_tokens=False)["input_ids"]
    assert len({*spoken[:-1]}) == len(spoken) - 1
    width = -(-len(tokenizer) // 8) * 8
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer), width))
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for token, successor in pairwise(spoken):
            model.lm_head.weight[successor, token] = 2.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
