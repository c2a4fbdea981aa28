"""Videos of a record: found inside one folder only, and decoded when they are used."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from g2rpo._shown import shown
from g2rpo_trainer.record import BrokenRecord

from .images import embedded, locate, open_image, reason_of

Picture = npt.NDArray[np.uint8]
"""(H, W, 3), upright, RGB."""

# Of containers that hold their pictures themselves. FFmpeg knows others, such as playlists, which
# name files and addresses to fetch; a record must not lead there.
_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,gif"

# Pillow's limit for an image [pixels].
_MOST_PIXELS = 2 * 89_478_485


class Frames(NamedTuple):
    """A video as files of its frames, with their paths as written in the record."""

    paths: tuple[str, ...]
    fps: float  # frames a second


VideoSource: TypeAlias = str | bytes | Frames
"""A path as written in the record, the bytes of a video file, or files of frames."""


class Clip(NamedTuple):
    """Frames of a video at even distances in time.

    Attributes
    ----------
    frames : ndarray (F, H, W, 3), uint8
        Upright, RGB. Frame k is shown at k · duration / F.
    duration : float
        Duration of the video in seconds.
    """

    frames: npt.NDArray[np.uint8]
    duration: float

    @property
    def times(self) -> list[float]:
        """Times at which the frames are shown, in seconds from the first.

        Examples
        --------
        >>> Clip(np.zeros((4, 2, 2, 3), np.uint8), 6.0).times
        [0.0, 1.5, 3.0, 4.5]
        """
        count = len(self.frames)
        return [number * self.duration / count for number in range(count)]


@dataclass(frozen=True)
class Video:
    """A video whose beginning was read; it is decoded each time that it is used.

    Decoded frames take hundreds of times the memory of the file, so the records of an evaluation
    could not hold them.

    Attributes
    ----------
    source : VideoSource
        Path or contents of the video.
    folder : Path or None
        Folder of relative paths.
    max_frames : int
        Largest number of frames that are read.
    width, height : int
        Size in pixels, upright.
    duration : float
        Duration in seconds.
    """

    source: VideoSource
    folder: Path | None
    max_frames: int
    width: int
    height: int
    duration: float

    def read(self) -> Clip:
        """Decode at most ``max_frames`` frames.

        Raises
        ------
        BrokenRecord
            If they cannot be found or decoded.
        """
        source, most = self.source, self.max_frames
        with _naming(source):
            if isinstance(source, Frames):
                count = min(len(source.paths), most)
                chosen = [source.paths[k * len(source.paths) // count] for k in range(count)]
                pictures = [_frame(path, self.folder) for path in chosen]
            else:
                pictures = _pictures_of(_file(source, self.folder), most)
            if len({picture.shape for picture in pictures}) > 1:
                raise ValueError("its frames differ in size")
            return Clip(np.stack(pictures), self.duration)


def video_source(value: Any) -> VideoSource:
    """Return the path or the contents of a video of a record; raise BrokenRecord if it has none.

    It is a path, a data URI, the ``{"bytes", "path"}`` of datasets, in which the bytes win, or the
    ``{"frames", "fps"}`` of a video that was taken apart.

    Examples
    --------
    >>> video_source({"bytes": None, "path": "a.mp4"})
    'a.mp4'
    >>> video_source({"frames": ["0.png", "1.png"], "fps": 2})
    Frames(paths=('0.png', '1.png'), fps=2.0)
    """
    if isinstance(value, dict):
        if "frames" in value and value.keys() <= {"frames", "fps"}:
            return _frames(value["frames"], value.get("fps"))
        if value.keys() <= {"bytes", "path"}:
            value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value[:5].lower() == "data:":
        return embedded(value, "video")
    if isinstance(value, str | bytes) and value:
        return value
    raise BrokenRecord(
        f"a video is {shown(value)}; it must be a path, {{bytes, path}}, or {{frames, fps}}"
    )


def paths_of(source: VideoSource) -> tuple[str, ...]:
    """Return the paths of a video, as written in the record."""
    if isinstance(source, Frames):
        return source.paths
    return (source,) if isinstance(source, str) else ()


def open_video(source: VideoSource, folder: Path | None, max_frames: int) -> Video:
    """Return a video after reading its beginning, of which at most `max_frames` will be read.

    Raises BrokenRecord if it cannot be found, or does not begin with a picture.
    """
    for path in paths_of(source):
        locate(path, folder, "video")
    with _naming(source):
        if isinstance(source, Frames):
            duration = len(source.paths) / source.fps
            picture = _frame(source.paths[0], folder)
        else:
            picture, duration = _look(_file(source, folder))
    height, width, _ = picture.shape
    return Video(source, folder, max_frames, width, height, duration)


def _frames(paths: Any, fps: Any) -> Frames:
    is_list = isinstance(paths, list) and all(isinstance(path, str) and path for path in paths)
    if not is_list or not paths:
        raise BrokenRecord(f"frames is {shown(paths)}; it must be a list of paths")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < float("inf"):
        raise BrokenRecord(f"fps is {shown(fps)}; it must be a number of frames a second above 0")
    return Frames(tuple(paths), float(fps))


def _file(source: str | bytes, folder: Path | None) -> Path | bytes:
    return source if isinstance(source, bytes) else locate(source, folder, "video")


def _frame(path: str, folder: Path | None) -> Picture:
    return np.asarray(open_image(path, folder, "video"))


@contextmanager
def _naming(source: VideoSource) -> Iterator[None]:
    try:
        yield
    except BrokenRecord:
        raise
    # FFmpeg's errors are of many kinds, and so is what is wrong with damaged files.
    except Exception as error:
        first = next(iter(paths_of(source)), None)
        name = f"video {shown(first)}" if first else "a video"
        raise BrokenRecord(f"{name} cannot be read ({reason_of(error)})") from None


def _look(source: Path | bytes) -> tuple[Picture, float]:
    """Return the first picture and the duration of a video; raise an error if it has none."""
    with _opened(source) as (container, stream):
        table = _Timetable(container, stream)
        return _picture(next(_frames_from(container, stream, None))), table.duration


def _pictures_of(source: Path | bytes, most: int) -> list[Picture]:
    """Return the pictures of a video at even distances in time, beginning with its first frame.

    They are `most`, or one a frame if there are fewer; picture k is shown at k · duration / count.
    A file that cannot be decoded raises ValueError, OSError, or further errors of FFmpeg.
    """
    with _opened(source) as (container, stream):
        table = _Timetable(container, stream)
        stamps = table.shown_at_even_distances(min(most, len(table.stamps)))
        pictures = []
        # From one key frame all that follow it are decoded, up to the last that is asked for.
        for key, wanted in groupby(stamps, table.key_before):
            pictures += _decoded(container, stream, key, list(wanted))
        return pictures


class _Timetable:
    """When the frames of a stream are shown, in its own unit of time.

    Packets say so, and need not be decoded for it: that takes the time of reading the file. Frames
    need not follow at even distances.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        packets = [
            (packet.dts if packet.pts is None else packet.pts, packet.is_keyframe)
            for packet in container.demux(stream)
            # Some are there to be decoded and not to be shown; the last is the end, and has none.
            if packet.size and not packet.is_discard
        ]
        if not packets:
            raise ValueError("has no frames")
        if any(stamp is None for stamp, _ in packets):
            raise ValueError("does not say when its frames are shown")
        self.stamps = sorted(stamp for stamp, _ in packets)
        self._keys = sorted(stamp for stamp, is_key in packets if is_key)
        first, last, count = self.stamps[0], self.stamps[-1], len(packets)
        # The last frame is shown as long as the others are on average.
        self._step = (last - first) / (count - 1) if count > 1 else 0.0
        self._length = last - first + self._step
        rate = stream.average_rate
        alone = 1 / float(rate) if rate else 1.0
        self.duration = float(self._length * stream.time_base) if self._length else alone

    def shown_at_even_distances(self, count: int) -> list[int]:
        # A little later than the moment itself, which rounding may put before its own frame.
        moments = (
            self.stamps[0] + number * self._length / count + self._step / 1000
            for number in range(count)
        )
        return [self.stamps[bisect_right(self.stamps, moment) - 1] for moment in moments]

    def key_before(self, stamp: int) -> int | None:
        """Return the last key frame up to a moment; None is the beginning of the file."""
        place = bisect_right(self._keys, stamp)
        return self._keys[place - 1] if place else None


@contextmanager
def _opened(source: Path | bytes) -> Iterator[tuple[Any, Any]]:
    import av

    with (
        BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file,
        av.open(file, options={"format_whitelist": _FORMATS}) as container,
    ):
        stream: Any = container.streams.best("video")
        if stream is None:
            raise ValueError("has no pictures, only sound")
        stream.thread_type = "AUTO"
        codec = stream.codec_context
        if codec.width * codec.height > _MOST_PIXELS:
            raise ValueError(f"has {codec.width} × {codec.height} pixels, which exceeds the limit")
        yield container, stream


def _frames_from(container: Any, stream: Any, key: int | None) -> Iterator[Any]:
    """Decode from a key frame, or from the beginning of the file."""
    if key is None:
        container.seek(0)
    else:
        container.seek(key, stream=stream)
    yield from container.decode(stream)


def _decoded(container: Any, stream: Any, key: int | None, wanted: list[int]) -> list[Picture]:
    frames = _frames_from(container, stream, key)
    shown = next(frames, None)
    if key is not None and (shown is None or _stamp(shown) > wanted[0]):
        # Some formats find no key frame, only places in the file, which may be too late.
        return _decoded(container, stream, None, wanted)
    if shown is None:
        raise ValueError("has no frame that can be decoded")
    pictures: list[Picture] = []
    upcoming = next(frames, None)
    for stamp in wanted:
        while upcoming is not None and _stamp(upcoming) <= stamp:
            shown, upcoming = upcoming, next(frames, None)
        pictures.append(_picture(shown))
    return pictures


def _stamp(frame: Any) -> int:
    stamp: int = frame.dts if frame.pts is None else frame.pts
    return stamp


def _picture(frame: Any) -> Picture:
    # Telephones write pictures as the sensor lies, and how to turn them.
    upright: Picture = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
    return upright
