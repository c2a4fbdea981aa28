"""The text of a prompt: a question or a conversation, places of images and videos, and options."""

from __future__ import annotations

import re
from typing import Any, TypeAlias

from g2rpo._shown import shown
from g2rpo.rewards.choice import option_texts, plain, read_label
from g2rpo_trainer.record import BrokenRecord

MEDIA = ("image", "video")
"""Kinds of media in a prompt, in their order before a question."""

Message: TypeAlias = dict[str, Any]

# Keys under which other formats put a text, an image or a video into a part.
_CONTENTS = ("text", "image", "image_url", "video", "video_url", "url", "path", "bytes", "base64")
_ROLES = ("system", "user", "assistant")


def from_problem(problem: Any, images: int, videos: int = 0) -> tuple[str, list[Message] | None]:
    """Return a question's text, and its message if images or videos are inside of the text.

    The question has one ``<image>`` for each image, or none: then images come before the text, and
    there is no message. The same holds for ``<video>``. Raises BrokenRecord if there is no text, or
    another number of places than of images or videos.

    Examples
    --------
    >>> from_problem("<image><image>What changed?", 2)
    ('What changed?', None)
    """
    if not isinstance(problem, str) or not problem.strip():
        raise BrokenRecord(f"problem is {shown(problem)}; it must be a text")
    counts = _counts(images, videos)
    placed = _words([problem], counts)
    if not placed:
        return problem.strip(), None
    leading = {kind: count for kind, count in counts.items() if kind not in placed}
    parts = [*_leading(leading), *_split(problem, placed)]
    text = " ".join(part["text"] for part in parts if part["type"] == "text")
    if not text:
        beside = " and ".join(f"{kind}s" for kind in placed)
        raise BrokenRecord(f"problem is {shown(problem)}; it must have a text beside its {beside}")
    return text, None if _media_lead(parts) else [{"role": "user", "content": parts}]


def from_messages(prompt: Any, images: int, videos: int = 0) -> tuple[str, list[Message] | None]:
    """Return the last question of a conversation, and the whole if it is more than that.

    Contents are texts, or parts ``{"type": "image"}``, ``{"type": "video"}`` and ``{"type": "text",
    "text": …}``. In place of such parts, the words ``<image>`` and ``<video>`` may stand in texts;
    without either, images and videos open the first question. A single question with its images and
    videos before it is returned without messages. Raises BrokenRecord if it is no conversation that
    ends with a question, has another number of places than of images or videos, or places of both
    sorts.

    Examples
    --------
    >>> from_messages([{"role": "user", "content": "How many?"}], 1)
    ('How many?', None)
    >>> _, (message,) = from_messages([{"role": "user", "content": "In <image>?"}], 1)
    >>> message["content"]
    [{'type': 'text', 'text': 'In'}, {'type': 'image'}, {'type': 'text', 'text': '?'}]
    """
    if not isinstance(prompt, list) or not prompt:
        raise BrokenRecord(f"prompt is {shown(prompt)}; it must be a text or a list of messages")
    messages = [_message(message, number) for number, message in enumerate(prompt, 1)]
    if messages[-1]["role"] != "user":
        raise BrokenRecord(f"prompt ends with role {messages[-1]['role']!r}; it must end with user")
    parts = [part for message in messages for part in message["content"]]
    counts = _counts(images, videos)
    placed = _words([part["text"] for part in parts if part["type"] == "text"], counts)
    leading = {kind: count for kind, count in counts.items() if kind not in placed}
    for kind in MEDIA:
        if own := sum(part["type"] == kind for part in parts):
            if kind in placed:
                raise BrokenRecord(
                    f"the prompt has places for {kind}s as parts and as the word <{kind}>; "
                    "it must have one sort"
                )
            _check_count(kind, own, leading.pop(kind))
    for message in messages:
        message["content"] = [
            piece for part in message["content"] for piece in _pieces(part, placed)
        ]
    first = next(message for message in messages if message["role"] == "user")
    first["content"] = [*_leading(leading), *first["content"]]
    last = messages[-1]["content"]
    text = " ".join(part["text"] for part in last if part["type"] == "text").strip()
    if not text:
        raise BrokenRecord("the last message has no text; it must ask something")
    return text, None if len(messages) == 1 and _media_lead(last) else messages


def with_options(text: str, options: list[str]) -> str:
    """Return the question with its options below it, each with a letter, unless it has them.

    Examples
    --------
    >>> print(with_options("Which animal?", ["cat", "dog"]))
    Which animal?
    A. cat
    B. dog
    """
    if all(option in text for option in options):
        return text
    return "\n".join([text, *lettered(options)])


def lettered(options: list[str]) -> list[str]:
    """Return options that begin with their letters.

    Examples
    --------
    >>> lettered(["cat", "dog"]), lettered(["A. cat", "B. dog"])
    (['A. cat', 'B. dog'], ['A. cat', 'B. dog'])
    """
    if option_texts(options) != options:
        return options
    return [f"{chr(ord('A') + index)}. {option}" for index, option in enumerate(options)]


def right_option(answer: str, options: list[str]) -> str:
    """Return the letter of the option that an answer names by its text; another answer as it is.

    Raises BrokenRecord if it names no option, or could mean two of them.

    Examples
    --------
    >>> right_option("B crust", ["A. mantle", "B. B crust"]), right_option("b", ["cat", "dog"])
    ('B', 'b')
    """
    texts = option_texts(options)
    letter, rest = read_label(answer)
    named = -1 if letter is None else ord(letter) - ord("A")
    same = [number for number, text in enumerate(texts) if text == answer] or [
        number for number, text in enumerate(texts) if plain(text) == plain(answer)
    ]
    if len(same) > 1:
        raise BrokenRecord(
            f"answer is {shown(answer)}, the text of {len(same)} options; not of one"
        )
    if letter and not rest and named < len(texts):
        # A letter of the data's own is no text; without any, "A" may be the text of option B.
        if same and same[0] != named and texts == options:
            raise BrokenRecord(
                f"answer is {shown(answer)}, which is a letter and the text of another option; "
                "options must begin with their letters, such as 'A. …'"
            )
        return answer
    if same:
        return chr(ord("A") + same[0])
    if letter and named >= len(texts):
        raise BrokenRecord(f"answer is {shown(answer)}; it must be one of {len(texts)} options")
    if letter and plain(rest) != plain(texts[named]):
        raise BrokenRecord(
            f"answer is {shown(answer)}; it must agree with option {letter}, {shown(texts[named])}"
        )
    return letter or answer


def _message(message: Any, number: int) -> Message:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise BrokenRecord(f"message {number} is {shown(message)}; it must have role and content")
    role, content = message["role"], message["content"]
    if role not in _ROLES:
        raise BrokenRecord(
            f"message {number} has role {shown(role)}; it must be {', '.join(_ROLES)}"
        )
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not content:
        raise BrokenRecord(
            f"message {number} has content {shown(content)}; it must be a text or a list of parts"
        )
    return {"role": role, "content": [_part(part, number) for part in content]}


def _part(part: Any, number: int) -> Message:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in (*MEDIA, "text") or (kind == "text" and not isinstance(part.get("text"), str)):
        raise BrokenRecord(
            f"message {number} has part {shown(part)}; its type must be image, video, or text "
            "with a text"
        )
    named = ("type", "text") if kind == "text" else ("type",)
    for name in _CONTENTS:
        if name not in named and part.get(name):
            raise BrokenRecord(
                f"message {number} has a part of type {kind} whose {name} is {shown(part[name])}; "
                "texts stand in parts of type text, images and videos in columns of their own"
            )
    return {name: part[name] for name in named}


def _words(texts: list[str], counts: dict[str, int]) -> list[str]:
    """Return the kinds that stand where words say so; without a medium, the word is just a word."""
    placed = []
    for kind, count in counts.items():
        places = sum(text.count(f"<{kind}>") for text in texts)
        if count and places:
            _check_count(kind, places, count)
            placed.append(kind)
    return placed


def _pieces(part: Message, placed: list[str]) -> list[Message]:
    """Return a part with its words replaced by parts, or as it stands if it has none."""
    has_words = any(f"<{kind}>" in part.get("text", "") for kind in placed)
    return _split(part["text"], placed) if has_words else [part]


def _split(text: str, placed: list[str]) -> list[Message]:
    parts: list[Message] = []
    for number, piece in enumerate(re.split(f"<({'|'.join(placed)})>", text)):
        if number % 2:  # texts and what stands between them take turns
            parts.append({"type": piece})
        elif piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts


def _counts(images: int, videos: int) -> dict[str, int]:
    return dict(zip(MEDIA, (images, videos), strict=True))


def _leading(counts: dict[str, int]) -> list[Message]:
    return [{"type": kind} for kind, count in counts.items() for _ in range(count)]


def _media_lead(parts: list[Message]) -> bool:
    kinds = [part["type"] for part in parts]
    return kinds == sorted(kinds, key=(*MEDIA, "text").index) and kinds.count("text") == 1


def _check_count(kind: str, places: int, count: int) -> None:
    if places != count:
        noun = kind if places == 1 else f"{kind}s"
        raise BrokenRecord(f"the prompt has places for {places} {noun}, but the record has {count}")
