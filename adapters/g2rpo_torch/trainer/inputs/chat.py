"""From a record to the text that the model reads: a conversation through the chat template."""

from __future__ import annotations

from typing import Any, cast

from g2rpo.data import PromptRecord
from g2rpo.data.broken import BrokenRecord
from g2rpo.tasks import Record

from ..model.policy_model import Policy

FORMAT_INSTRUCTION = (
    "Think first, then answer, exactly in this form: "
    "<think>your reasoning</think><answer>your answer</answer>"
)

Message = dict[str, Any]


def conversation(record: Record) -> list[Message]:
    """Return the turns of a record, which begin with how to answer.

    Parameters
    ----------
    record : Record
        A question with images and videos before it, or a conversation of its own.

    Returns
    -------
    list of dict
        Contents as parts.
    """
    instruction = {"type": "text", "text": FORMAT_INSTRUCTION}
    # Records of some sources hold more, see :class:`g2rpo.data.PromptRecord`.
    stored = cast(PromptRecord, record)
    messages = stored.get("messages")
    if not messages:
        images = [{"type": "image"} for _ in record["images"]]
        videos = [{"type": "video"} for _ in stored.get("videos", [])]
        question = {"type": "text", "text": record["problem"]}
        messages = [{"role": "user", "content": [*images, *videos, question]}]
    if messages[0]["role"] == "system":
        first, *rest = messages
        return [{**first, "content": [*first["content"], instruction]}, *rest]
    return [{"role": "system", "content": [instruction]}, *messages]


def chat_text(policy: Policy, record: Record) -> str:
    """Return a record's prompt as the model was taught to read it, up to where it answers.

    Parameters
    ----------
    policy : Policy
        Whose chat template is used.
    record : Record
        The prompt.

    Returns
    -------
    str

    Raises
    ------
    BrokenRecord
        If the template refuses the conversation.

    Notes
    -----
    Some templates know no system message. Its text then opens the first question.
    """
    from jinja2 import TemplateError

    messages = conversation(record)
    try:
        return _rendered(policy, messages)
    except TemplateError:
        try:
            return _rendered(policy, _without_system(messages))
        except TemplateError as error:
            raise BrokenRecord(
                f"the model's chat template refuses the conversation ({error}); change the turns, "
                "or name another template by model.chat_template"
            ) from error


def _rendered(policy: Policy, messages: list[Message]) -> str:
    if not policy.takes_images:
        messages = [{**message, "content": _plain(message["content"])} for message in messages]
    # By the tokenizer, also where the template is the processor's: some processors would look for
    # videos first.
    text: str = policy.tokenizer.apply_chat_template(
        messages,
        chat_template=policy.processor.chat_template,
        add_generation_prompt=True,
        tokenize=False,
    )
    return text


def _plain(parts: list[Message]) -> str:
    # Templates of text models put contents into the text as they are.
    return "\n\n".join(part["text"] for part in parts)


def _without_system(messages: list[Message]) -> list[Message]:
    system, first, *rest = messages
    return [{**first, "content": [*system["content"], *first["content"]]}, *rest]
