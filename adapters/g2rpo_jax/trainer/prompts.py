"""From records to model inputs: questions, tokenised and padded on the left."""

from __future__ import annotations

from collections.abc import Sequence

from g2rpo.data import PromptRecord
from g2rpo_jax.policy.questions import Questions
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
        If a record is more than one question in words, or has more tokens than
        ``policy.max_prompt_length``.
    """
    questions = _questions(policy)
    encoded = [questions.tokens(record) for record in records]
    longest = max(map(len, encoded))
    length = -(-longest // _LENGTH_STEP) * _LENGTH_STEP
    return policy.placement.divided(pad_left(encoded, policy.tokenizer.pad_id, length))


def prompt_fault(policy: Policy, record: PromptRecord) -> str | None:
    """Return why a policy cannot be asked a record's prompt, or None if it can."""
    return _questions(policy).fault(record)


def _questions(policy: Policy) -> Questions:
    return Questions(policy.tokenizer.encode_prompt, policy.max_prompt_length, engine="jax")
