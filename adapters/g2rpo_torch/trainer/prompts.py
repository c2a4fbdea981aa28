"""From records to model inputs: chats with images, tokenised and padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from g2rpo.data import PromptRecord
from g2rpo.run.errors import RunError
from g2rpo.tasks import Record

from .policy_model import Policy

FORMAT_INSTRUCTION = (
    "Think first, then answer, exactly in this form: "
    "<think>your reasoning</think><answer>your answer</answer>"
)

Inputs = dict[str, torch.Tensor]


def encode_prompts(policy: Policy, records: Sequence[Record]) -> Inputs:
    """Return the model inputs of P prompts.

    Parameters
    ----------
    policy : Policy
        Whose processor and device are used.
    records : sequence of Record
        The prompts.

    Returns
    -------
    dict of str to Tensor
        ``input_ids`` and ``attention_mask`` (P, L) int64, and what the model takes besides, such as
        ``pixel_values``. Every tensor has one row a prompt, except where the model wants the
        patches of all images in one line (``image_grid_thw`` tells).

    Raises
    ------
    RunError
        If the model wants one image a prompt, and some prompt has another number of them.
    """
    chats = [_chat(record) for record in records]
    texts = policy.processor.apply_chat_template(chats, add_generation_prompt=True)
    images = [record["images"] for record in records]
    encoded = policy.processor(
        text=texts, images=images if any(images) else None, padding=True, return_tensors="pt"
    )
    _refuse_mixed_images(encoded, images)
    return {name: tensor.to(policy.device) for name, tensor in encoded.items()}


def _refuse_mixed_images(encoded: Inputs, images: Sequence[Sequence[Any]]) -> None:
    # Without a grid nothing tells which row of pixels belongs to which prompt.
    if "image_grid_thw" in encoded or "pixel_values" not in encoded:
        return
    if len(encoded["pixel_values"]) != len(images):
        counts = sorted({len(of_prompt) for of_prompt in images})
        raise RunError(
            f"prompts of one batch have {', '.join(map(str, counts))} images, but this model takes "
            "one image a prompt; train on tasks with one image each (data.tasks), or on a model "
            "such as Qwen-VL"
        )


def _chat(record: Record) -> list[dict[str, Any]]:
    """Return the conversation, which begins with how to answer."""
    instruction = {"type": "text", "text": FORMAT_INSTRUCTION}
    images = [{"type": "image"} for _ in record["images"]]
    question = {"type": "text", "text": record["problem"]}
    # Records of some sources hold a conversation, see :class:`g2rpo.data.PromptRecord`.
    messages = cast(PromptRecord, record).get("messages")
    if not messages:
        messages = [{"role": "user", "content": [*images, question]}]
    if messages[0]["role"] == "system":
        first, *rest = messages
        return [{**first, "content": [*first["content"], instruction]}, *rest]
    return [{"role": "system", "content": [instruction]}, *messages]


def select_rows(inputs: Inputs, rows: torch.Tensor | slice) -> Inputs:
    """Return the inputs of some prompts, repeated or reordered as ``rows`` says."""
    lined_up = _select_images(inputs, rows) if "image_grid_thw" in inputs else {}
    return {
        name: tensor[rows] for name, tensor in inputs.items() if name not in lined_up
    } | lined_up


def extend_rows(inputs: Inputs, tokens: torch.Tensor) -> Inputs:
    """Return the inputs with text behind every prompt, but the attention mask of the prompts.

    Parameters
    ----------
    inputs : dict of str to Tensor
        P prompts of L tokens.
    tokens : Tensor (P, T), int64
        What stands behind them.

    Returns
    -------
    dict of str to Tensor
        Token types, where the model has them, say that the new tokens are text.
    """
    extended = dict(inputs)
    extended["input_ids"] = torch.cat([inputs["input_ids"], tokens], dim=1)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            types = inputs[name]
            extended[name] = torch.cat([types, types.new_zeros(tokens.shape)], dim=1)
    return extended


def _select_images(inputs: Inputs, rows: torch.Tensor | slice) -> Inputs:
    """Select from images whose patches stand in one line, without a row for each prompt."""
    grids, patches = inputs["image_grid_thw"], inputs["pixel_values"]
    image_tokens = (inputs["mm_token_type_ids"] == 1).sum(-1)
    # Every image token stands for the same number of patches.
    patches_each = image_tokens * (len(patches) // max(int(image_tokens.sum()), 1))
    image_ends, prompt_ends = grids.prod(-1).cumsum(0), patches_each.cumsum(0)
    images_each = torch.searchsorted(image_ends, prompt_ends, right=True).diff(
        prepend=image_ends.new_zeros(1)
    )
    chosen = torch.arange(len(image_tokens), device=patches.device)[rows].tolist()
    return {
        name: torch.cat([parts[row] for row in chosen])
        for name, parts in (
            ("pixel_values", patches.split(patches_each.tolist())),
            ("image_grid_thw", grids.split(images_each.tolist())),
        )
    }
