"""A record as a row of a host's data set, and the Arrow types of its columns."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Collection, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

from g2rpo_trainer.record import BrokenRecord, Record, conversation

if TYPE_CHECKING:
    from PIL.Image import Image

#: Of ``images``, ``videos``, ``text`` without either and ``answers``, what any record has.
Parts = Collection[str]
Row = dict[str, Any]

_PLACES = ("<image>", "<video>", "<audio>")


class Host(NamedTuple):
    """Requirements of a trainer on its data set."""

    row: Callable[[Record, int, str, Parts], Row]  # record, number, split, parts -> columns
    fields: Callable[[Any, Parts], dict[str, Any]]  # column -> Arrow type
    refused: Mapping[frozenset[str], str]  # parts that it cannot take together -> the reason
    fault: Callable[[Record], str | None] = lambda record: None  # why it cannot be taken


def _trl_row(record: Record, number: int, split: str, parts: Parts) -> Row:
    # A model that reads images gets contents as parts, which may stand in any order.
    shown: Callable[[list[Row]], Any] = list if "images" in parts else _joined
    turns = [{**turn, "content": shown(turn["content"])} for turn in conversation(record)]
    return {
        "prompt": turns,
        "images": [_png(image) for image in record.images],
        "answer": _answer(record, parts),
        "problem_type": record.problem_type,
        "options": record.options,
        "task_type": record.task,
    }


def _trl_fields(pa: Any, parts: Parts) -> dict[str, Any]:
    text = pa.string()
    content = pa.list_(pa.struct({"type": text, "text": text})) if "images" in parts else text
    images = {"images": _image_type(pa)} if "images" in parts else {}
    return {
        "prompt": pa.list_(pa.struct({"role": text, "content": content})),
        **images,
        "answer": _answer_type(pa, parts),
        "problem_type": text,
        "options": pa.list_(text),
        "task_type": text,
    }


def _verl_row(record: Record, number: int, split: str, parts: Parts) -> Row:
    return {
        "data_source": record.task,
        "prompt": [{**turn, "content": _joined(turn["content"])} for turn in conversation(record)],
        "images": [_png(image) for image in record.images],
        "videos": [_frames(video) for video in record.videos],
        "reward_model": {"style": "rule", "ground_truth": _answer(record, parts)},
        "extra_info": {
            "index": number,
            "split": split,
            "problem_type": record.problem_type,
            "options": record.options,
        },
    }


def _verl_fields(pa: Any, parts: Parts) -> dict[str, Any]:
    text = pa.string()
    media = {
        "images": _image_type(pa),
        "videos": pa.list_(pa.struct({"video": pa.list_(text), "sample_fps": pa.float64()})),
    }
    extra = {"index": pa.int64(), "split": text, "problem_type": text, "options": pa.list_(text)}
    return {
        "data_source": text,
        "prompt": pa.list_(pa.struct({"role": text, "content": text})),
        **{name: kind for name, kind in media.items() if name in parts},
        "reward_model": pa.struct({"style": text, "ground_truth": _answer_type(pa, parts)}),
        "extra_info": pa.struct(extra),
    }


def _verl_fault(record: Record) -> str | None:
    if not record.images and not record.videos:
        return None
    for turn in conversation(record):
        for part in turn["content"]:
            for word in _PLACES:
                if word in part.get("text", ""):
                    return (
                        f"has the word {word} in a text beside images or videos, where verl takes "
                        "it for the place of one; write it in another way"
                    )
    try:
        for video in record.videos:
            video.read()
    except BrokenRecord as error:
        return str(error)
    return None


def _tunix_row(record: Record, number: int, split: str, parts: Parts) -> Row:
    turns = [{**turn, "content": _joined(turn["content"])} for turn in conversation(record)]
    scored = {name: record.as_row()[name] for name in ("problem_type", "answer", "options")}
    return {
        "prompts": "\n\n".join(turn["content"] for turn in turns),
        "messages": json.dumps(turns, ensure_ascii=False),
        "task": record.task,
        "record": json.dumps(scored, ensure_ascii=False),
    }


_TEXT_ALONE = "but tunix's learner takes prompts of text alone; convert them --to verl"
_MIXED = (
    "with images and others of text alone, which TRL's GRPOTrainer cannot have in one batch; "
    "name tasks of one sort by --set data.tasks=[…], or convert them --to verl"
)
_VIDEOS = "with videos, but TRL's GRPOTrainer takes text and images; convert them --to verl"

HOSTS: dict[str, Host] = {
    "trl": Host(
        _trl_row,
        _trl_fields,
        {frozenset({"videos"}): _VIDEOS, frozenset({"images", "text"}): _MIXED},
    ),
    "verl": Host(_verl_row, _verl_fields, {}, _verl_fault),
    "tunix": Host(
        _tunix_row,
        lambda pa, _: dict.fromkeys(("prompts", "messages", "task", "record"), pa.string()),
        {frozenset({part}): f"with {part}, {_TEXT_ALONE}" for part in ("images", "videos")},
    ),
}
"""Name of a trainer -> what it expects of its data set."""


def _joined(content: list[Row]) -> str:
    r"""Return parts as one text, in which words are the places of images and videos.

    Examples
    --------
    >>> _joined([{"type": "image"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}])
    '<image>a\n\nb'
    """
    text, is_text = "", False
    for part in content:
        if part["type"] == "text":
            text += ("\n\n" if is_text else "") + part["text"]
        else:
            text += f"<{part['type']}>"
        is_text = part["type"] == "text"
    return text


def _answer(record: Record, parts: Parts) -> str:
    # A column has one type: texts and lists of texts are both JSON, which `datasets` decodes.
    return json.dumps(record.answer, ensure_ascii=False) if "answers" in parts else record.answer


def _answer_type(pa: Any, parts: Parts) -> Any:
    return pa.json_() if "answers" in parts else pa.string()


def _image_type(pa: Any) -> Any:
    return pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))


def _png(image: Image) -> Row:
    file = BytesIO()
    image.save(file, format="PNG", compress_level=1)  # without loss at any level
    return {"bytes": file.getvalue(), "path": None}


def _frames(video: Any) -> Row:
    """Return the frames that a model sees, as verl's reader of videos takes them."""
    from PIL import Image

    clip = video.read()
    files = (_png(Image.fromarray(frame))["bytes"] for frame in clip.frames)
    uris = [f"data:image/png;base64,{b64encode(file).decode()}" for file in files]
    return {"video": uris, "sample_fps": len(uris) / clip.duration}
