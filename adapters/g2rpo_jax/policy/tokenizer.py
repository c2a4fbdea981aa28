"""A tokenizer of words and characters: pure Python, with a vocabulary that is a JSON list.

The longest entry of the vocabulary that stands at a place of the text is its token there. With all
printable ASCII characters among the entries, every such text comes back from its tokens as it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

PAD, END, UNKNOWN, USER, POLICY = SPECIAL = ("<pad>", "<end>", "<unknown>", "<user>", "<policy>")
"""Padding, the end of a response, a character without a token, and who speaks from here on."""


class Tokenizer:
    """Text to token ids and back.

    Parameters
    ----------
    entries : sequence of str
        The vocabulary; the place of an entry is its id. :data:`SPECIAL` come first.

    Attributes
    ----------
    pad_id, eos_id, unknown_id : int
        Ids of the special tokens.
    banned_ids : tuple of int
        Special tokens that a policy must not sample: all of them but the end.

    Examples
    --------
    >>> tokenizer = Tokenizer([*SPECIAL, "How", " many", "H", "?", " "])
    >>> tokenizer.encode("How many H?")
    [5, 6, 9, 7, 8]
    >>> tokenizer.decode([5, 6, 9, 7, 8, tokenizer.eos_id])
    'How many H?'
    """

    def __init__(self, entries: Sequence[str]) -> None:
        if tuple(entries[: len(SPECIAL)]) != SPECIAL:
            raise ValueError(f"entries must begin with {SPECIAL}, got {entries[: len(SPECIAL)]}")
        if len(set(entries)) != len(entries):
            raise ValueError("entries must not repeat")
        self.entries = tuple(entries)
        self._ids = {entry: number for number, entry in enumerate(entries)}
        self.pad_id, self.eos_id, self.unknown_id = (
            self._ids[name] for name in (PAD, END, UNKNOWN)
        )
        self.banned_ids = tuple(self._ids[name] for name in SPECIAL if name != END)
        # What a text contains is never special, whatever it spells.
        plain = sorted(entries[len(SPECIAL) :], key=len, reverse=True)
        self._token = re.compile("|".join(map(re.escape, plain)) + "|.", re.DOTALL)

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self.entries)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text; a character without a token is unknown."""
        return [self._ids.get(piece, self.unknown_id) for piece in self._token.findall(text)]

    def encode_prompt(self, problem: str) -> list[int]:
        """Return the tokens of a question, up to where the answer begins."""
        return [self._ids[USER], *self.encode(problem), self._ids[POLICY]]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of tokens; special ones have none."""
        return "".join(self.entries[number] for number in ids if number >= len(SPECIAL))

    def save(self, path: Path) -> None:
        """Write the vocabulary."""
        path.write_text(json.dumps(self.entries, indent=0) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a vocabulary.

        Raises
        ------
        ValueError
            If the file holds something else.
        """
        entries = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise ValueError(f"{path}: must hold a list of texts")
        return cls(entries)
