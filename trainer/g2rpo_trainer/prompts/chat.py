"""From a record to the text of its prompt: a conversation through the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from g2rpo_trainer.policy.build import CHAT_TEMPLATE
from g2rpo_trainer.record import BrokenRecord, Record, conversation

from ..model.chat_template import ANSWER_TAG, Message, render, split_at, template_of
from ..model.policy_model import Policy

# A word that no template knows, of characters that no template escapes or strips.
_MARK = "c7f3e1m{:04d}"


class Chat(NamedTuple):
    """The prompt of a record as a text.

    Attributes
    ----------
    text : str
        The conversation by the model's chat template, up to where its answer begins.
    opened : str
        Part of the answer format at the end of ``text``, from the first opening tag behind the
        last turn; empty if there is none. Templates of some reasoning models begin the thought
        themselves: their prompts end in ``<think>``, or in an empty thought. A response goes on
        from there, and is scored together with it.
    """

    text: str
    opened: str


def chat_of(policy: Policy, record: Record) -> Chat:
    """Return the prompt of a record by the chat template of a policy.

    Parameters
    ----------
    policy : Policy
        Owner of the chat template.
    record : Record
        The prompt.

    Raises
    ------
    BrokenRecord
        If the template refuses the conversation, or leaves out some of its text.

    Notes
    -----
    Some templates refuse system messages, and some leave them out. Their text then opens the next
    question.
    """
    from jinja2 import TemplateError

    # The embedded policy was taught the format, and has no place for an instruction.
    knows_format = template_of(policy.processor) == CHAT_TEMPLATE
    turns = conversation(record, instruct=not knows_format)
    fault = ""
    for messages in (turns, _without_system(turns)):
        try:
            lost, ending = _rendered_marks(policy, messages)
        except TemplateError as error:
            fault = f"refuses the conversation ({error})"
            continue
        if not lost:
            return Chat(render(policy.processor, messages), _opened(ending))
        fault = f"leaves out the text of its {lost[0]} message"
    raise BrokenRecord(
        f"the model's chat template {fault}; change the turns, or name another template by "
        "model.chat_template"
    )


def whole_responses(opened: Sequence[str], completions: Sequence[str]) -> list[str]:
    """Return the texts that are scored: completions behind the format that their prompts open.

    Parameters
    ----------
    opened : sequence of str
        :attr:`Chat.opened` of P prompts.
    completions : sequence of str
        N = P · n sampled texts, those of one prompt next to each other.
    """
    each = len(completions) // max(len(opened), 1)
    starts = [start for start in opened for _ in range(each)]
    return [start + rest for start, rest in zip(starts, completions, strict=True)]


def _opened(ending: str) -> str:
    """Return the rest of a prompt's ending from its first opening tag on."""
    opening = next((tag for tag in ANSWER_TAG.finditer(ending) if "/" not in tag[0]), None)
    return "" if opening is None else ending[opening.start() :]


def _rendered_marks(policy: Policy, messages: list[Message]) -> tuple[list[str], str]:
    """Return the roles of messages that lose their text, and the text behind the last message.

    A template may strip or change a text, so each gets a mark at its end.
    """
    marked: list[Message] = []
    marks: dict[str, str] = {}
    for number, message in enumerate(messages):
        parts = list(message["content"])
        last = max((n for n, part in enumerate(parts) if part["type"] == "text"), default=None)
        if last is not None:
            mark = _MARK.format(number)
            marks[mark] = message["role"]
            parts[last] = {**parts[last], "text": f"{parts[last]['text']} {mark}"}
        marked.append({**message, "content": parts})
    text = render(policy.processor, marked)
    around = {mark: split_at(text, mark) for mark in marks}
    lost = [role for mark, role in marks.items() if around[mark] is None]
    behind = [parts[1] for parts in around.values() if parts is not None]
    return lost, min(behind, key=len, default="")


def _without_system(messages: list[Message]) -> list[Message]:
    turns: list[Message] = []
    waiting: list[Message] = []
    for message in messages:
        if message["role"] == "system":
            waiting += message["content"]
        elif message["role"] == "user" and waiting:
            turns.append({**message, "content": [*waiting, *message["content"]]})
            waiting = []
        else:
            turns.append(message)
    return turns
