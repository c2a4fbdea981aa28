"""Ends and special tokens of a chat template, found by rendering short conversations."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import dropwhile, takewhile
from typing import Any, NamedTuple

Message = dict[str, Any]

ANSWER_TAG = re.compile(r"</?(?:think|thinking|answer)>")
"""Tags of the answer format: never banned, and never taken for the end of a turn."""

_TAGS = ("<think>", "</think>", "<thinking>", "</thinking>", "<answer>", "</answer>")
# Words that no template knows, of characters that no template escapes or strips.
_SYSTEM, _QUESTION, _ANSWER, _AGAIN = "c7f3e1s", "c7f3e1q", "c7f3e1a", "c7f3e1t"


class EndOfTurn(NamedTuple):
    """End of an assistant's turn; both None if there is none.

    Attributes
    ----------
    token : int or None
        Token that closes the turn.
    text : str or None
        Text that closes the turn, where it is no single token.
    """

    token: int | None = None
    text: str | None = None


def template_of(processor: Any) -> str | None:
    """Return the Jinja text of a processor or of its tokenizer; None if there is none.

    Of several named templates this is ``default``.
    """
    own = getattr(processor, "chat_template", None) or tokenizer_of(processor).chat_template
    return (own.get("default") if isinstance(own, dict) else own) or None


def tokenizer_of(processor: Any) -> Any:
    """Return the tokenizer inside a processor, or the processor if it is one itself."""
    return getattr(processor, "tokenizer", processor)


def render(processor: Any, messages: list[Message], *, opens_answer: bool = True) -> str:
    """Return a conversation as text.

    Parameters
    ----------
    processor : transformers.ProcessorMixin or PreTrainedTokenizerBase
        Owner of the template.
    messages : list of dict
        Contents as parts.
    opens_answer : bool
        Add the beginning of an answer (``add_generation_prompt``).

    Raises
    ------
    jinja2.TemplateError
        If the template refuses the conversation.
    """
    if not hasattr(processor, "image_processor"):
        # Templates of text models put contents into the text as they are.
        messages = [
            {**message, "content": "\n\n".join(part["text"] for part in message["content"])}
            for message in messages
        ]
    # By the tokenizer, also where the template is the processor's: some processors would look for
    # videos first.
    text: str = tokenizer_of(processor).apply_chat_template(
        messages,
        chat_template=template_of(processor),
        add_generation_prompt=opens_answer,
        tokenize=False,
    )
    return text


def split_at(text: str, marker: str) -> tuple[str, str] | None:
    """Return the texts before and after the last occurrence of a marker, ignoring case."""
    found = list(re.finditer(re.escape(marker), text, re.IGNORECASE))
    return (text[: found[-1].start()], text[found[-1].end() :]) if found else None


def end_of_turn(processor: Any) -> EndOfTurn:
    """Find the token or text that closes an assistant's turn: the first behind its text.

    Notes
    -----
    Some templates close only turns that another one follows, and some begin an answer whether they
    are told to or not. There the first special token behind the text counts if the next turn is not
    what it opens: it is the same in front of a question and of an answer, or behind a question too.
    """
    turns = [_turn("user", _QUESTION), _turn("assistant", _ANSWER)]
    last = _after_answer(processor, turns, opens_answer=False)
    before_answer = _after_answer(processor, turns)
    if last.strip() and last != before_answer:
        return _first_end(processor, last)
    before_question = _after_answer(processor, [*turns, _turn("user", _AGAIN)], opens_answer=False)
    behind_question = split_at(_before_answer(processor, turns), _QUESTION) or ("", "")
    first = _first_end(processor, before_question)
    others = [_first_end(processor, text) for text in (before_answer, behind_question[1])]
    is_special = first.token in special_ids(tokenizer_of(processor))
    return first if is_special and first in others else EndOfTurn()


def framing_ids(processor: Any) -> set[int]:
    """Return the special tokens in a prompt that stand around texts, images and answers.

    Tokens that an assistant itself writes before its text, around its reasoning, are left out, and
    so are the tags of the answer format.
    """
    media = [{"type": "image"}] if hasattr(processor, "image_processor") else []
    question = _turn("user", _QUESTION)
    shown = {**question, "content": [*media, *question["content"]]}
    prompt = _rendered(processor, [_turn("system", _SYSTEM), shown]) or _rendered(
        processor, [shown]
    )
    asked = _rendered(processor, [question])
    # Templates take reasoning under either name.
    reasoning = {"reasoning_content": _AGAIN, "thinking": _AGAIN}
    answer = {**_turn("assistant", _ANSWER), **reasoning}
    beginning = _before_answer(processor, [question, answer])
    own = beginning.removeprefix(asked) if beginning.startswith(asked) else ""
    tokenizer = tokenizer_of(processor)
    found = {*_ids(tokenizer, prompt)} - {*_ids(tokenizer, own)}
    return (found & special_ids(tokenizer)) - tag_ids(tokenizer)


def missing_opening(processor: Any) -> str | None:
    """Return the text that a template leaves out in front of an answer; None if none is missing.

    Nothing is missing where prompts are the same with and without ``add_generation_prompt``, but
    end as they do in front of an answer: ``[/INST]`` for example both ends a question and begins an
    answer.
    """
    question = _turn("user", _QUESTION)
    prompt = _rendered(processor, [question])
    if prompt != _rendered(processor, [question], opens_answer=False):
        return None
    answered = _before_answer(processor, [question, _turn("assistant", _ANSWER)])
    after, between = (split_at(text, _QUESTION) for text in (prompt, answered))
    if after is None or between is None:
        return None
    ours, whole = ("".join(text.split()) for text in (after[1], between[1]))
    return None if ours and ours.startswith(whole) else between[1].removeprefix(after[1])


def special_ids(tokenizer: Any) -> set[int]:
    """Return the tokens that a tokenizer has registered as special."""
    added = tokenizer.added_tokens_decoder.items()
    return {*tokenizer.all_special_ids, *(token for token, entry in added if entry.special)}


def tag_ids(tokenizer: Any) -> set[int]:
    """Return the tokens that are tags of the answer format."""
    return ids_of(tokenizer, _TAGS)


def ids_of(tokenizer: Any, texts: Iterable[str]) -> set[int]:
    """Return the tokens of texts that are tokens; others are left out."""
    return {*tokenizer.convert_tokens_to_ids(list(texts))} - {None, tokenizer.unk_token_id}


def _turn(role: str, text: str) -> Message:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _rendered(processor: Any, messages: list[Message], *, opens_answer: bool = True) -> str:
    from jinja2 import TemplateError

    try:
        return render(processor, messages, opens_answer=opens_answer)
    except TemplateError:
        return ""


def _before_answer(processor: Any, messages: list[Message]) -> str:
    parts = split_at(_rendered(processor, messages, opens_answer=False), _ANSWER)
    return parts[0] if parts else ""


def _after_answer(processor: Any, messages: list[Message], *, opens_answer: bool = True) -> str:
    parts = split_at(_rendered(processor, messages, opens_answer=opens_answer), _ANSWER)
    return parts[1] if parts else ""


def _first_end(processor: Any, text: str) -> EndOfTurn:
    tokenizer = tokenizer_of(processor)
    text = text.lstrip()
    while tag := ANSWER_TAG.match(text):
        text = text[tag.end() :].lstrip()
    added = {*special_ids(tokenizer), *tokenizer.added_tokens_decoder}
    ids = _ids(tokenizer, text.rstrip())
    # Some tokenizers put a space in front.
    ids = list(dropwhile(lambda token: not tokenizer.decode([token]).strip(), ids))
    spelled = list(takewhile(lambda token: token not in added, ids))
    if not ids or tokenizer.unk_token_id in ids[: len(spelled) + 1]:
        return EndOfTurn()
    if not spelled or len(ids) == 1:
        return EndOfTurn(token=ids[0])
    return EndOfTurn(text=tokenizer.decode(spelled).strip().split("\n")[0].rstrip())


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
