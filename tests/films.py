"""Small videos whose frames say by their brightness which they are."""

from __future__ import annotations

import io
from fractions import Fraction

import numpy as np

# So much brighter is each frame than the one before; coding changes values by a few.
STEP = 10


def film(
    count=16,
    fps=8,
    *,
    form="mp4",
    codec="mpeg4",
    size=(32, 24),
    key_every=4,
    b_frames=0,
    stamps=None,
    left=0,
):
    """Return the bytes of a video: frame k has brightness 10 · k, and stands at k / fps seconds.

    ``stamps`` are other times, in units of 1 / fps; ``size`` is width and height; ``left`` is how
    much brighter the left half is.
    """
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.bit_rate = 10_000_000
        stream.codec_context.gop_size = key_every
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.time_base = Fraction(1, fps)
        for number in range(count):
            picture = np.full((*size[::-1], 3), STEP * number, np.uint8)
            picture[:, : size[0] // 2] += left
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(format=stream.pix_fmt)
            frame.pts = number if stamps is None else stamps[number]
            frame.time_base = Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def numbers_of(frames):
    """Return which frames of the film these are."""
    return [round(float(frame.mean()) / STEP) for frame in frames]
