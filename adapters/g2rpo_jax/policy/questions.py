"""What the engines that read text alone can ask: one question, of so many tokens at most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from g2rpo.data import PromptRecord
from g2rpo.data.broken import BrokenRecord
from g2rpo.run.errors import RunError

MAX_PROMPT_LENGTH = 1024
"""Most tokens of a prompt to a decoder without an end to its context, unless a run says more.

The decoder's positions are rotary and go on for ever, but reading a prompt takes memory that grows
with its length squared, times the prompts of a step: one prompt that is far too long would end a
run. Those of the built-in tasks have less than 64 tokens.
"""


@dataclass(frozen=True)
class Questions:
    """Turns records into the tokens of their questions.

    Attributes
    ----------
    encode : callable
        From a question to the tokens of its prompt.
    max_prompt_length : int
        Most tokens that a prompt may have.
    engine : str
        Whose questions they are; for messages.

    Examples
    --------
    >>> record = {"problem": "6 * 7 = ?", "task_type": "maths", "images": ()}
    >>> questions = Questions(lambda text: [ord(c) for c in text], 4, engine="jax")
    >>> questions.fault(record)[:51]
    'its prompt has 9 tokens, but at most 4 are allowed '
    """

    encode: Callable[[str], list[int]]
    max_prompt_length: int
    engine: str

    def tokens(self, record: PromptRecord) -> list[int]:
        """Return the tokens of a record's prompt.

        Raises
        ------
        RunError
            If it cannot be asked, with the record's place.
        """
        try:
            return self._tokens(record)
        except BrokenRecord as error:
            place = record.get("place")
            name = place or f"a record of task {record['task_type']!r}"
            advice = "; data.skip_broken: true leaves such records out" if place else ""
            raise RunError(f"{name}: {error}{advice}") from error

    def fault(self, record: PromptRecord) -> str | None:
        """Return why a record cannot be asked, or None if it can."""
        try:
            self._tokens(record)
        except BrokenRecord as error:
            return str(error)
        return None

    def _tokens(self, record: PromptRecord) -> list[int]:
        what = "images" if record["images"] else None
        if record.get("messages"):
            what = what or "a conversation"
        if what:
            raise BrokenRecord(
                f"has {what}, but the engine {self.engine} reads one question in words; name "
                "builtin-text or other data of text (data.source), or train with the engine "
                "reference"
            )
        tokens = self.encode(record["problem"])
        if len(tokens) > self.max_prompt_length:
            raise BrokenRecord(
                f"its prompt has {len(tokens)} tokens, but at most {self.max_prompt_length} are "
                "allowed (rollout.max_prompt_length); shorten it, or change the limit"
            )
        return tokens
