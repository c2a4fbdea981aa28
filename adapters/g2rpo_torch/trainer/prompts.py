"""From records to model inputs: chats with images, tokenised and padded on the left."""

from __future__ import annotations

from collections.abc import Sequence

import torch

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
        ``pixel_values``. Every tensor has one row a prompt.
    """
    chats = [
        [
            {"role": "system", "content": [{"type": "text", "text": FORMAT_INSTRUCTION}]},
            {
                "role": "user",
                "content": [
                    *({"type": "image"} for _ in record["images"]),
                    {"type": "text", "text": record["problem"]},
                ],
            },
        ]
        for record in records
    ]
    texts = policy.processor.apply_chat_template(chats, add_generation_prompt=True)
    images = [record["images"] for record in records] if records[0]["images"] else None
    encoded = policy.processor(text=texts, images=images, padding=True, return_tensors="pt")
    return {name: tensor.to(policy.device) for name, tensor in encoded.items()}


def select_rows(inputs: Inputs, rows: torch.Tensor | slice) -> Inputs:
    """Return the inputs of some prompts, repeated or reordered as ``rows`` says."""
    return {name: tensor[rows] for name, tensor in inputs.items()}
