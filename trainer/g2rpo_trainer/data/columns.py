"""From a row of a table, in either of two formats, to a record."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import Any

from g2rpo._shown import listed, shown
from g2rpo.rewards.registry import plain_name, takes_texts
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.record import BrokenRecord, Record

from .images import ImageSource, fingerprint, image_source, locate, open_image
from .questions import Message, from_messages, from_problem, lettered, right_option, with_options
from .tables import need_library
from .videos import Frames, VideoSource, open_video, paths_of, video_source

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
"""Part of a record -> the columns in which it may stand."""

DATA_TYPES = ("text", "image", "video")

LONGEST_NAME = 100
"""Most characters of a task's name, which tables and the names of metrics contain."""

# A column that holds one of these says nothing, and hides no other.
_EMPTY: tuple[Any, ...] = (None, "", [], {})


@dataclass(frozen=True)
class Reading:
    """Options to read the rows of one table."""

    task: str  # of rows that name none
    problem_type: str | None  # of rows that name none
    columns: Mapping[str, str]  # part of a record -> the column in which it stands
    image_dir: Path | None = None
    video_dir: Path | None = None
    video_frames: int = 16  # most frames of a video


@dataclass(frozen=True)
class Row:
    """A record whose images and videos are not opened yet."""

    record: Record
    images: list[ImageSource]
    videos: list[VideoSource]

    def digest(self) -> int:
        """Return 64 bits that follow from what is asked, so that equal prompts have equal ones."""
        videos = [
            fingerprint(video) if isinstance(video, bytes) else video for video in self.videos
        ]
        asked = [self.record.messages or self.record.problem, self.record.options, videos]
        text = json.dumps([asked, [fingerprint(image) for image in self.images]])
        return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")

    def check(self, reading: Reading, check_record: Callable[[Mapping[str, Any]], None]) -> None:
        """Raise BrokenRecord if files are missing, or the record cannot be tokenised or scored.

        `check_record` raises ValueError if it cannot be scored.
        """
        for image in self.images:
            if isinstance(image, str):
                locate(image, reading.image_dir)
        for video in self.videos:
            if not isinstance(video, Frames):
                need_library("av", "a record with a video", extra="video")
            for path in paths_of(video):
                locate(path, reading.video_dir, "video")
        self._check_unicode()
        try:
            check_record(self.record.as_row())
        except ValueError as error:
            raise BrokenRecord(str(error)) from None
        except ImportError as error:  # no fault of the record's: a reward lacks its library
            raise RunError(str(error)) from None

    def open(self, place: str, reading: Reading) -> Record:
        """Return the record, its images opened and its videos looked at."""
        folder, most = reading.video_dir, reading.video_frames
        return replace(
            self.record,
            images=[open_image(image, reading.image_dir) for image in self.images],
            videos=[open_video(video, folder, most) for video in self.videos],
            place=place,
        )

    def _check_unicode(self) -> None:
        # JSON can write half of a surrogate pair, at which a tokenizer would fail in mid-run.
        one = self.record
        texts = [one.problem, one.messages, one.answer, one.task, one.problem_type, one.options]
        try:
            json.dumps(texts, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise BrokenRecord("holds half of a surrogate pair, which is no Unicode text") from None


def read_row(values: Mapping[str, Any], reading: Reading) -> Row:
    """Return the record that the columns of a row hold; files and answers are not checked.

    The row is in the paper's format or TRL's conversational one. Raises BrokenRecord if a column is
    missing or holds something else than it must.

    Examples
    --------
    >>> reading = Reading("sums", "numerical", {})
    >>> row = read_row({"prompt": [{"role": "user", "content": "2+2?"}], "solution": 4}, reading)
    >>> row.record.problem, row.record.answer, row.record.task
    ('2+2?', '4', 'sums')
    """
    try:
        return _row(values, reading)
    except RecursionError:
        raise BrokenRecord("holds lists or objects that lie too deep in each other") from None


def _row(values: Mapping[str, Any], reading: Reading) -> Row:
    images = [image_source(image) for image in _list(_cell(values, "images", reading))]
    videos = [video_source(video) for video in _list(_cell(values, "videos", reading))]
    problem, messages = _question(values, len(images), len(videos), reading)
    options = _options(values, reading)
    problem_type = _named(values, "problem_type", reading.problem_type, reading)
    task = _named(values, "task_type", reading.task, reading)
    check_task_name(task)
    _check_data_type(values, images, videos, reading)
    is_choice = plain_name(problem_type) == "multiple choice"
    record = Record(
        problem=with_options(problem, options) if is_choice and messages is None else problem,
        answer=_answer(values, options if is_choice else [], problem_type, reading),
        problem_type=problem_type,
        task=task,
        options=lettered(options),
        messages=messages,
    )
    return Row(record, images, videos)


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
    return _number(value) if isinstance(value, Decimal) else value


def _number(value: Decimal) -> int | float | Decimal:
    """Return a decimal number of Parquet as JSON would give it, unless it would lose digits."""
    if not value.is_finite():
        return math.nan if value.is_nan() else float(value)
    if value == value.to_integral_value() and value.adjusted() < 100:
        return int(value)
    near = float(value)
    return near if Decimal(repr(near)) == value else value


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
    return right_option(text, options) if options else text


def _answer_text(answer: Any) -> str:
    if isinstance(answer, list | dict):
        try:
            answer = json.dumps(answer, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError):
            raise BrokenRecord(f"answer is {shown(answer)}; it must be a text") from None
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | Decimal):
        raise BrokenRecord(f"answer is {shown(answer)}; it must be a text or a number")
    if isinstance(answer, float) and not math.isfinite(answer):
        raise BrokenRecord(f"answer is {answer}; it must be a text or a finite number")
    text = (f"{answer:f}" if isinstance(answer, Decimal) else str(answer)).strip()
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


def _check_data_type(
    values: Mapping[str, Any],
    images: list[ImageSource],
    videos: list[VideoSource],
    reading: Reading,
) -> None:
    found = "video" if videos else "image" if images else "text"
    stated = _cell(values, "data_type", reading)
    if stated is None or stated == found:
        return
    if stated not in DATA_TYPES:
        raise BrokenRecord(f"data_type is {shown(stated)}; it must be {', '.join(DATA_TYPES)}")
    raise BrokenRecord(f"data_type is {stated!r}, but by its columns the record is {found!r}")


def check_task_name(name: str) -> None:
    """Raise BrokenRecord if a task may not be called so.

    Metrics put the task behind a slash, ``reward/ocr``, and reports name the mean over the tasks
    ``mean``.

    Examples
    --------
    >>> check_task_name("spatial grounding")
    >>> check_task_name("mean")
    Traceback (most recent call last):
        ...
    g2rpo_trainer.record.BrokenRecord: task 'mean' has the name of the mean over the tasks;
    name it otherwise in the column task_type
    """
    if name == "mean":
        fault = "has the name of the mean over the tasks"
    elif "/" in name:
        fault = "has a slash in its name, which divides the names of metrics"
    elif not name.isprintable():
        fault = "has characters in its name that cannot be printed"
    elif len(name) > LONGEST_NAME:
        fault = f"has a name of {len(name)} characters; there can be {LONGEST_NAME}"
    else:
        return
    raise BrokenRecord(f"task {shown(name)} {fault}; name it otherwise in the column task_type")
