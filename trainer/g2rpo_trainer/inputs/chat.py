"""From a record to the text that the model reads: a conversation through the chat template."""

from __future__ import annotations

from collections.abc import Sequence

from g2rpo_trainer.policy.build import CHAT_TEMPLATE
from g2rpo_trainer.record import FORMAT_INSTRUCTION, BrokenRecord, Record, conversation

from ..model.chat_template import ANSWER_TAG, Message, render, split_at, template_of
from ..model.policy_model import Policy

__all__ = ["FORMAT_INSTRUCTION", "chat_text", "conversation", "opened_text", "whole_responses"]

# A word that no template knows, of characters that no template escapes or strips.
_MARK = "c7f3e1m{:04d}"


def chat_text(policy: Policy, record: Record) -> str:
    """Return a record's prompt as the model was taught to read it, up to where it answers.

    Parameters
    ----------
    policy : Policy
        Owner of the chat template.
    record : Record
        The prompt.

    Returns
    -------
    str

    Raises
    ------
    BrokenRecord
        If the template refuses the conversation, or leaves out some of its text.

    Notes
    -----
    Some templates refuse system messages, and some leave them out. Their text then opens the next
    question.
    """
    messages, _ = _readable(policy, record)
    return render(policy.processor, messages)


def opened_text(policy: Policy, record: Record) -> str:
    """Return the part of the answer format with which a record's prompt ends.

    Templates of some reasoning models begin the thought themselves: their prompts end in
    ``<think>``, or in a thought that is empty. A response goes on from there, and is scored
    together with it.

    Parameters
    ----------
    policy : Policy
        Owner of the chat template.
    record : Record
        The prompt.

    Returns
    -------
    str
        From the first opening tag behind the last turn; empty if there is none.
    """
    _, ending = _readable(policy, record)
    opening = next((tag for tag in ANSWER_TAG.finditer(ending) if "/" not in tag[0]), None)
    return "" if opening is None else ending[opening.start() :]


def whole_responses(opened: Sequence[str], completions: Sequence[str]) -> list[str]:
    """Return the texts that are scored: what each prompt has opened, and the completion of it.

    Parameters
    ----------
    opened : sequence of str
        :func:`opened_text` of P prompts.
    completions : sequence of str
        N = P · n sampled texts, those of one prompt next to each other.
    """
    each = len(completions) // max(len(opened), 1)
    starts = [start for start in opened for _ in range(each)]
    return [start + rest for start, rest in zip(starts, completions, strict=True)]


def _readable(policy: Policy, record: Record) -> tuple[list[Message], str]:
    """Return the turns in a form that the template keeps, and what it writes behind them."""
    from jinja2 import TemplateError

    # The embedded policy was taught the format, and has no place for an instruction.
    knows_format = template_of(policy.processor) == CHAT_TEMPLATE
    turns = conversation(record, instruct=not knows_format)
    fault: str | TemplateError = ""
    for messages in (turns, _without_system(turns)):
        try:
            lost, ending = _rendered_marks(policy, messages)
        except TemplateError as error:
            fault = error
            continue
        if not lost:
            return messages, ending
        fault = f"leaves out the text of its {lost[0]} message"
    if isinstance(fault, TemplateError):
        fault = f"refuses the conversation ({fault})"
    raise BrokenRecord(
        f"the model's chat template {fault}; change the turns, or name another template by "
        "model.chat_template"
    )


def _rendered_marks(policy: Policy, messages: list[Message]) -> tuple[list[str], str]:
    """Return the roles of messages whose text the template leaves out, and what follows the last.

    A template may strip or change a text, so that each gets a mark at its end to be found by.
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
