"""From records to model inputs: questions, tokenised and padded on the left."""

from __future__ import annotations

from collections.abc import Sequence

from g2rpo.data import PromptRecord
from g2rpo.run.errors import RunError
from g2rpo_jax.policy.reading import Prompts, pad_left

from .policy_model import Policy

# Prompts are padded to a multiple of this, so that steps whose longest prompts differ a little
# share one compilation.
_LENGTH_STEP = 64


def encode_prompts(policy: Policy, records: Sequence[PromptRecord]) -> Prompts:
    """Return the prompts of P records, divided among the devices.

    Parameters
    ----------
    policy : Policy
        Whose tokenizer and devices are used.
    records : sequence of PromptRecord
        The prompts.

    Returns
    -------
    Prompts
        Tokens and mask (P, L), L a multiple of 64.

    Raises
    ------
    RunError
        If a record is more than one question in words.
    """
    for record in records:
        _refuse_more_than_words(record)
    encoded = [policy.tokenizer.encode_prompt(record["problem"]) for record in records]
    longest = max(map(len, encoded))
    length = -(-longest // _LENGTH_STEP) * _LENGTH_STEP
    return policy.placement.divided(pad_left(encoded, policy.tokenizer.pad_id, length))


def _refuse_more_than_words(record: PromptRecord) -> None:
    what = None
    if record["images"]:
        what = "images"
    elif record.get("messages"):
        what = "a conversation"
    if what:
        place = record.get("place") or f"a record of task {record['task_type']!r}"
        raise RunError(
            f"{place} has {what}, but the engine jax reads one question in words; name "
            "builtin-text or other data of text (data.source), or train with the engine reference"
        )
