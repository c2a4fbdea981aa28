"""The vocabulary of the embedded policy: the words of the built-in text tasks, and characters."""

from __future__ import annotations

import re
import string

from g2rpo.tasks import LEVELS, TEXT_TASKS

from .tokenizer import SPECIAL, Tokenizer

TAGS = ("<think>", "</think>", "<answer>", "</answer>")

# Enough items of each level to meet every word that the tasks have.
_ITEMS = 60
_WORD = re.compile(r" ?[A-Za-z]{2,}|\[x1,y1,x2,y2\]")
# Letters to be sorted are no words.
_LETTERS = re.compile(r" ?[A-Z]+")


def build_tokenizer() -> Tokenizer:
    """Return a tokenizer with a token for each word, and one for each ASCII character.

    Examples
    --------
    >>> tokenizer = build_tokenizer()
    >>> [tokenizer.entries[token] for token in tokenizer.encode("red circle at 9,41")]
    ['red', ' circle', ' at', ' ', '9', ',', '4', '1']
    """
    words = set()
    for task in TEXT_TASKS.values():
        for level in LEVELS:
            for index in range(_ITEMS):
                item = task.item(0, index, level=level)
                for text in (item.record["problem"], item.worked):
                    words |= {word for word in _WORD.findall(text) if not _LETTERS.fullmatch(word)}
    return Tokenizer([*SPECIAL, *TAGS, *sorted(words), "\n", *string.printable[:95]])
