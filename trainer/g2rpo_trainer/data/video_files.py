"""Pictures out of video files, by PyAV."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
"""(H, W, 3), upright, RGB."""

# Of containers that hold their pictures themselves. FFmpeg knows others, such as playlists, which
# name files and addresses to fetch; a record must not lead there.
_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,gif"

# As many as Pillow allows an image [pixels].
_MOST_PIXELS = 2 * 89_478_485


class Look(NamedTuple):
    """The first picture of a video, and how long it takes in seconds."""

    picture: Picture
    duration: float


def look(source: Path | bytes) -> Look:
    """Return what a video begins with, and its duration.

    Raises
    ------
    ValueError, OSError
        If there is no picture; FFmpeg has further kinds of errors.
    """
    with _opened(source) as (container, stream):
        table = _Timetable(container, stream)
        return Look(_picture(next(_frames_from(container, stream, None))), table.duration)


def pictures_of(source: Path | bytes, most: int) -> list[Picture]:
    """Return what a video shows at even distances in time, beginning with its first frame.

    Parameters
    ----------
    source : Path or bytes
        A file or its contents.
    most : int
        Most pictures.

    Returns
    -------
    list of ndarray
        As many as there are frames, but at most that many: what is shown at k · duration / count.

    Raises
    ------
    ValueError, OSError
        If they cannot be decoded; FFmpeg has further kinds of errors.
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
