"""From a row of a table, in either of two formats, to one checked record."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from g2rpo._shown import listed, shown
from g2rpo.rewards.registry import plain_name, takes_texts
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.tasks.base import Record

from .broken import BrokenRecord
from .images import ImageSource, fingerprint, image_source, locate, open_image
from .opening import need_library
from .prompt import Message, from_messages, from_problem, lettered, right_option, with_options
from .task_names import check_task_name
from .videos import Frames, Video, VideoSource, open_video, paths_of, video_source

COLUMNS: dict[str, tuple[str, ...]] = {
    "problem": ("problem",),
    "prompt": ("prompt", "messages"),
    "images": ("images", "image"),
    "videos": ("videos", "video"),
    "answer": ("answer", "solution"),
    "problem_type": ("problem_type",),
    "data_type": ("data_type",),
    "task_type": ("task_type",),
    "options": ("options",),
}
"""What a record is made of -> the columns in which it may stand."""

DATA_TYPES = ("text", "image", "video")

# A column that holds one of these says nothing, and hides no other.
_EMPTY: tuple[Any, ...] = (None, "", [], {})


class PromptRecord(Record, total=False):
    """A record with what some sources add to the paper's columns.

    Attributes
    ----------
    messages : list of dict
        The conversation, contents as parts, if a prompt is more than images, videos and one
        question.
    videos : list of Video
        Looked at, and decoded when they are read; only if there are any.
    place : str
        Where the record stands, such as ``"train.jsonl, line 7"``, for errors and samples.
    """

    messages: list[Message]
    videos: list[Video]
    place: str


@dataclass(frozen=True)
class Reading:
    """How the rows of one table are read.

    Attributes
    ----------
    task : str
        Task of rows that name none.
    problem_type : str, optional
        Problem type of rows that name none.
    columns : mapping
        What a record is made of -> the column in which it stands, in place of the usual ones.
    check : callable
        Raises ValueError if a record cannot be scored.
    image_dir, video_dir : Path, optional
        Folders of images and of videos.
    video_frames : int
        Most frames of a video.
    """

    task: str
    problem_type: str | None
    columns: Mapping[str, str]
    check: Callable[[Mapping[str, Any]], None]
    image_dir: Path | None = None
    video_dir: Path | None = None
    video_frames: int = 16


@dataclass(frozen=True)
class Row:
    """A row that was checked, its images and videos found and not yet opened."""

    problem: str
    messages: list[Message] | None
    images: list[ImageSource]
    videos: list[VideoSource]
    answer: str | list[str]
    problem_type: str
    data_type: str
    task: str
    options: list[str]

    def digest(self) -> int:
        """Return 64 bits that follow from what is asked, so that equal prompts have equal ones."""
        videos = [
            fingerprint(video) if isinstance(video, bytes) else video for video in self.videos
        ]
        asked = [self.messages or self.problem, self.options, videos]
        text = json.dumps([asked, [fingerprint(image) for image in self.images]])
        return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")

    def record(self, place: str, reading: Reading) -> PromptRecord:
        """Return the record, its images opened and its videos looked at."""
        record = PromptRecord(
            problem=self.problem,
            images=[open_image(image, reading.image_dir) for image in self.images],
            answer=self.answer,  # type: ignore[typeddict-item]
            problem_type=self.problem_type,
            data_type=self.data_type,
            task_type=self.task,
            options=self.options,
            place=place,
        )
        if self.messages is not None:
            record["messages"] = self.messages
        if self.videos:
            folder, most = reading.video_dir, reading.video_frames
            record["videos"] = [open_video(video, folder, most) for video in self.videos]
        return record


def read_row(values: Mapping[str, Any], reading: Reading) -> Row:
    """Check a row and return what it says.

    Parameters
    ----------
    values : mapping
        Column -> value, in the paper's format or TRL's conversational one.
    reading : Reading
        How to read it.

    Returns
    -------
    Row

    Raises
    ------
    BrokenRecord
        If anything about it is wrong.

    Examples
    --------
    >>> reading = Reading("sums", "numerical", {}, lambda record: None)
    >>> row = read_row({"prompt": [{"role": "user", "content": "2+2?"}], "solution": 4}, reading)
    >>> row.problem, row.answer, row.task
    ('2+2?', '4', 'sums')
    """
    try:
        row = _row(values, reading)
    except RecursionError:
        raise BrokenRecord("holds lists or objects that lie too deep in each other") from None
    _check_unicode(row)
    try:
        reading.check(
            {"problem_type": row.problem_type, "answer": row.answer, "options": row.options}
        )
    except ValueError as error:
        raise BrokenRecord(str(error)) from None
    except ImportError as error:  # no fault of the record's: a reward lacks its library
        raise RunError(str(error)) from None
    return row


def _row(values: Mapping[str, Any], reading: Reading) -> Row:
    images = [image_source(image) for image in _list(_cell(values, "images", reading))]
    for image in images:
        if isinstance(image, str):
            locate(image, reading.image_dir)
    videos = _videos(values, reading)
    problem, messages = _question(values, len(images), len(videos), reading)
    options = _options(values, reading)
    problem_type = _named(values, "problem_type", reading.problem_type, reading)
    task = _named(values, "task_type", reading.task, reading)
    check_task_name(task)
    return Row(
        problem=_offer(problem, options, problem_type) if messages is None else problem,
        messages=messages,
        images=images,
        videos=videos,
        answer=_answer(values, options, problem_type, reading),
        problem_type=problem_type,
        data_type=_data_type(values, images, videos, reading),
        task=task,
        options=lettered(options),
    )


def _check_unicode(row: Row) -> None:
    # JSON can write half of a surrogate pair, at which a tokenizer would fail in mid-run.
    texts = [row.problem, row.messages, row.answer, row.task, row.problem_type, row.options]
    try:
        json.dumps(texts, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BrokenRecord("holds half of a surrogate pair, which is no Unicode text") from None


def _cell(values: Mapping[str, Any], name: str, reading: Reading) -> Any:
    """Return what a record says of a part, which it may say in several columns if they agree."""
    wanted = reading.columns.get(name)
    columns = (wanted,) if wanted else COLUMNS[name]
    cells = {column: _plain(values.get(column)) for column in columns}
    filled = {column: cell for column, cell in cells.items() if cell not in _EMPTY}
    if not filled:
        return next((cell for cell in cells.values() if cell is not None), None)
    first, *others = filled
    for other in others:
        if not _agree(filled[first], filled[other]):
            raise _ambiguous(first, filled[first], other, filled[other], name)
    return filled[first]


def _agree(one: Any, other: Any) -> bool:
    if isinstance(one, str | int | float) and isinstance(other, str | int | float):
        return str(one).strip() == str(other).strip()  # an answer is 4 or "4"
    return _list(one) == _list(other)  # an image, or a list of one


def _ambiguous(first: str, one: Any, second: str, other: Any, *names: str) -> BrokenRecord:
    remedy = " or ".join(f"data.columns.{name}" for name in names)
    return BrokenRecord(
        f"{first} is {shown(one)} and {second} is {shown(other)}; name the right column by {remedy}"
    )


def _plain(value: Any) -> Any:
    """Return a value as JSON would give it: no arrays, and no keys that are there for other rows.

    In a table, the objects of a column have the keys of all rows, null where a row has none.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items() if part is not None}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _question(
    values: Mapping[str, Any], images: int, videos: int, reading: Reading
) -> tuple[str, list[Message] | None]:
    found = {name: _cell(values, name, reading) for name in ("problem", "prompt")}
    given = {name: value for name, value in found.items() if value not in _EMPTY} or {
        name: value for name, value in found.items() if value is not None
    }
    chosen = [name for name in given if name in reading.columns] or list(given)
    if not chosen:
        raise BrokenRecord(
            f"has no problem and no prompt, but the columns {listed(values) or '(none)'}; "
            "name the right one by data.columns.problem, or messages by data.columns.prompt"
        )
    asked = [_asked(name, given[name], images, videos) for name in chosen]
    if len(asked) > 1 and asked[0] != asked[1]:
        raise _ambiguous("problem", given["problem"], "prompt", given["prompt"], *given)
    return asked[0]


def _asked(name: str, value: Any, images: int, videos: int) -> tuple[str, list[Message] | None]:
    if name == "prompt" and not isinstance(value, str):
        return from_messages(value, images, videos)
    if isinstance(value, list):
        raise BrokenRecord(
            f"problem is {shown(value)}; it must be a text, and messages are named by "
            "data.columns.prompt"
        )
    return from_problem(value, images, videos)


def _offer(problem: str, options: list[str], problem_type: str) -> str:
    return with_options(problem, options) if _is_choice(problem_type) else problem


def _is_choice(problem_type: str) -> bool:
    return plain_name(problem_type) == "multiple choice"


def _answer(
    values: Mapping[str, Any], options: list[str], problem_type: str, reading: Reading
) -> str | list[str]:
    answer = _cell(values, "answer", reading)
    text = _answer_text(answer)
    if isinstance(answer, list) and takes_texts(problem_type):
        # Several answers that are right, or a list of one; the reward says what it takes.
        if not answer or any(isinstance(item, list | dict) for item in answer):
            raise BrokenRecord(f"answer is {shown(answer)}; it must be a text or a list of texts")
        texts = [_answer_text(item) for item in answer]
        if len(texts) > 1:
            return texts
        text = texts[0]
    return right_option(text, options) if options and _is_choice(problem_type) else text


def _answer_text(answer: Any) -> str:
    if isinstance(answer, list | dict):
        try:
            answer = json.dumps(answer, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError):
            raise BrokenRecord(f"answer is {shown(answer)}; it must be a text") from None
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise BrokenRecord(f"answer is {shown(answer)}; it must be a text or a number")
    if isinstance(answer, float) and not math.isfinite(answer):
        raise BrokenRecord(f"answer is {answer}; it must be a text or a finite number")
    text = str(answer).strip()
    if "<answer>" in text:
        from g2rpo.rewards import parse_response

        text = parse_response(text).answer or ""
    if not text:
        raise BrokenRecord(f"answer is {shown(answer)}; it must not be empty")
    return text


def _options(values: Mapping[str, Any], reading: Reading) -> list[str]:
    options = _cell(values, "options", reading)
    if options is None or options == "":
        return []
    if not isinstance(options, list) or not all(isinstance(item, str) for item in options):
        raise BrokenRecord(f"options is {shown(options)}; it must be a list of texts")
    if len(options) > 26:
        raise BrokenRecord(f"has {len(options)} options; letters tell 26 apart")
    try:
        lettered(options)
    except ValueError as error:  # letters of their own in another order
        raise BrokenRecord(str(error)) from None
    return options


def _named(values: Mapping[str, Any], name: str, default: str | None, reading: Reading) -> str:
    value = _cell(values, name, reading)
    if value is None:
        value = default
    if value is None:
        raise BrokenRecord(
            f"has no {name}; add the column, name it by data.columns.{name}, or set data.{name}"
        )
    if not isinstance(value, str) or not value.strip():
        raise BrokenRecord(f"{name} is {shown(value)}; it must be a text")
    return value.strip()


def _videos(values: Mapping[str, Any], reading: Reading) -> list[VideoSource]:
    videos = [video_source(video) for video in _list(_cell(values, "videos", reading))]
    for video in videos:
        if not isinstance(video, Frames):
            need_library("av", "a record with a video", extra="video")
        for path in paths_of(video):
            locate(path, reading.video_dir, "video")
    return videos


def _data_type(
    values: Mapping[str, Any],
    images: list[ImageSource],
    videos: list[VideoSource],
    reading: Reading,
) -> str:
    found = "video" if videos else "image" if images else "text"
    stated = _cell(values, "data_type", reading)
    if stated is None or stated == found:
        return found
    if stated not in DATA_TYPES:
        raise BrokenRecord(f"data_type is {shown(stated)}; it must be {', '.join(DATA_TYPES)}")
    raise BrokenRecord(f"data_type is {stated!r}, but by its columns the record is {found!r}")
