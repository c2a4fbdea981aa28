"""Videos of a record: found inside one folder only, and decoded when they are used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from g2rpo._shown import shown

from .broken import BrokenRecord
from .images import embedded, locate, open_image, reason_of
from .video_files import Look, Picture, look, pictures_of


class Frames(NamedTuple):
    """A video as files of its frames, at even distances.

    Attributes
    ----------
    paths : tuple of str
        As they stand in the record.
    fps : float
        Frames a second.
    """

    paths: tuple[str, ...]
    fps: float


VideoSource: TypeAlias = str | bytes | Frames
"""A path as it stands in the record, the bytes of a video file, or files of frames."""


class Clip(NamedTuple):
    """What a video shows at even distances in time.

    Attributes
    ----------
    frames : ndarray (F, H, W, 3), uint8
        Upright, RGB. Frame k is what is shown at k · duration / F.
    duration : float
        In seconds.
    """

    frames: npt.NDArray[np.uint8]
    duration: float

    @property
    def times(self) -> list[float]:
        """When the frames are shown, in seconds from the first.

        Examples
        --------
        >>> Clip(np.zeros((4, 2, 2, 3), np.uint8), 6.0).times
        [0.0, 1.5, 3.0, 4.5]
        """
        count = len(self.frames)
        return [number * self.duration / count for number in range(count)]


@dataclass(frozen=True)
class Video:
    """A video that was looked at, and is decoded each time it is read.

    Decoded frames take hundreds of times the memory of the file, so that the records of an
    evaluation could not hold them.

    Attributes
    ----------
    source : VideoSource
        Where it comes from.
    folder : Path or None
        Of paths.
    max_frames : int
        Most frames that are read.
    width, height : int
        In pixels, upright.
    duration : float
        In seconds.
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
                pictures = pictures_of(_file(source, self.folder), most)
            if len({picture.shape for picture in pictures}) > 1:
                raise ValueError("its frames differ in size")
            return Clip(np.stack(pictures), self.duration)


def video_source(value: Any) -> VideoSource:
    """Return where a video comes from.

    Parameters
    ----------
    value : object
        A path, a data URI, the ``{"bytes", "path"}`` of datasets, in which the bytes win, or the
        ``{"frames", "fps"}`` of a video that was taken apart.

    Returns
    -------
    str, bytes or Frames

    Raises
    ------
    BrokenRecord
        If it is anything else, or empty.

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
    """Return the paths that a video consists of, as they stand in the record."""
    if isinstance(source, Frames):
        return source.paths
    return (source,) if isinstance(source, str) else ()


def open_video(source: VideoSource, folder: Path | None, max_frames: int) -> Video:
    """Look at the beginning of a video.

    Parameters
    ----------
    source : str, bytes or Frames
        What :func:`video_source` returned.
    folder : Path, optional
        Of paths.
    max_frames : int
        Most frames that are read of it.

    Returns
    -------
    Video

    Raises
    ------
    BrokenRecord
        If it cannot be found, or does not begin with a picture.
    """
    for path in paths_of(source):
        locate(path, folder, "video")
    with _naming(source):
        if isinstance(source, Frames):
            duration = len(source.paths) / source.fps
            first = Look(_frame(source.paths[0], folder), duration)
        else:
            first = look(_file(source, folder))
    height, width, _ = first.picture.shape
    return Video(source, folder, max_frames, width, height, first.duration)


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
