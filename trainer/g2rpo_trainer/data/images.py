"""Images of a record: found inside one folder only, opened as 8-bit RGB when they are used.

A picture with more than 8 bits a pixel, such as a scan, a depth map or an X-ray, is scaled by the
white that its file states, never by its own extremes, so that equal numbers are equally bright in
all pictures of a data set. A picture that would lose its grey levels in this way is refused.
"""

from __future__ import annotations

from base64 import b64decode
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from g2rpo._shown import error_text, shown
from g2rpo_trainer.record import BrokenRecord

if TYPE_CHECKING:
    from PIL.Image import Image

ImageSource: TypeAlias = "str | bytes | Image"
"""A path as written in the record, the bytes of an image file, or an open image."""

# Part of white that the brightest pixel must reach: of 16 bits, below it 16 of 256 levels are left.
_DARKEST = 1 / 16

# Tags of TIFF, and two of their values.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2

# Factor by which Pillow changes the samples of PNG files, but not the one that is transparent.
_PNG_FACTORS = {"L;2": 85.0, "L;4": 17.0, "RGB;16B": 1 / 256}

_REMEDY = "scale the values and save them with 8 bits a channel"


def image_source(value: Any) -> ImageSource:
    """Return the path or the contents of an image of a record; raise BrokenRecord if it has none.

    It is a path, a data URI, a Pillow image, or the ``{"bytes", "path"}`` of datasets, in which the
    bytes win: the path is then the name that the file had.

    Examples
    --------
    >>> image_source("a.png"), image_source({"bytes": None, "path": "a.png"})
    ('a.png', 'a.png')
    """
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value[:5].lower() == "data:":
        return embedded(value, "image")
    if isinstance(value, str | bytes) and value:
        return value
    if hasattr(value, "convert") and hasattr(value, "size"):  # Pillow is not loaded to tell
        return value
    raise BrokenRecord(
        f"an image is {shown(value)}; it must be a path, a Pillow image, or {{bytes, path}}"
    )


def embedded(uri: str, kind: str) -> bytes:
    """Return the file that a data URI holds; raise BrokenRecord if it is empty or not in base64.

    Examples
    --------
    >>> embedded("data:text/plain;base64,aGk=", "image")
    b'hi'
    """
    head, _, text = uri.partition(",")
    try:
        data = b64decode(text, validate=True) if head.endswith(";base64") else b""
    except ValueError:
        data = b""
    if not data:
        raise BrokenRecord(
            f"{kind} {shown(uri)} holds no file; it must be data:{kind}/…;base64, and base64 text"
        )
    return data


def locate(path: str, folder: Path | None, kind: str = "image") -> Path:
    """Return the file that a record's path names; raise BrokenRecord unless it lies in the folder.

    Links and ``..`` are resolved before anything is compared. Without a folder no path is allowed.
    `kind` is ``"image"`` or ``"video"``, for the error, which names the setting of the folder.
    """
    setting = f"data.{kind}_dir"
    if folder is None:
        raise BrokenRecord(
            f"{kind} {shown(path)} is a path, but the source has no folder; set {setting}"
        )
    if "://" in path:
        raise BrokenRecord(f"{kind} {shown(path)} is an address; save the file and name its path")
    try:
        root = folder.resolve()
        found = (root / path).resolve()
        if not found.is_relative_to(root):
            raise BrokenRecord(f"{kind} {shown(path)} lies outside {setting} {str(folder)!r}")
        if not found.is_file():
            reason = "is not a file" if found.exists() else "does not exist"
            raise BrokenRecord(f"{kind} {shown(path)} {reason} in {setting} {str(folder)!r}")
    except (OSError, RuntimeError) as error:  # a loop of links, a name too long
        raise BrokenRecord(f"{kind} {shown(path)} cannot be found ({reason_of(error)})") from None
    except ValueError as error:
        if isinstance(error, BrokenRecord):
            raise
        raise BrokenRecord(f"{kind} {shown(path)} is no path ({error})") from None
    return found


def open_image(source: ImageSource, folder: Path | None, kind: str = "image") -> Image:
    """Return an image as 8-bit RGB, upright by its EXIF data, transparent parts white.

    It is decoded, with no file left open. Raises BrokenRecord if it cannot be found or decoded, or
    has grey levels that 8 bits cannot hold. `kind` is the kind of file for errors, as in
    :func:`locate`.
    """
    from PIL import Image

    place = source if isinstance(source, str) else None
    opened = locate(source, folder, kind) if isinstance(source, str) else source
    try:
        if isinstance(opened, Image.Image):
            return _rgb(opened)
        with Image.open(BytesIO(opened) if isinstance(opened, bytes) else opened) as image:
            return _rgb(image)
    # Pillow's plug-ins raise nearly everything on a damaged file.
    except Exception as error:
        name = f"{kind} {shown(place)}" if place else "an image"
        reason = reason_of(error).partition(" <_io.BytesIO")[0].partition(" '/")[0]
        raise BrokenRecord(f"{name} cannot be read ({reason})") from None


def fingerprint(source: ImageSource) -> str:
    """Return a text that identifies an image: its path as written, or a hash of its contents."""
    if isinstance(source, str):
        return source
    data = source if isinstance(source, bytes) else source.tobytes() + repr(source.size).encode()
    return blake2b(data, digest_size=16).hexdigest()


def _rgb(image: Image) -> Image:
    from PIL import Image, ImageOps

    scale = _scale_of(image)
    image = ImageOps.exif_transpose(image)
    if scale is not None:
        image = _in_8_bits(image, scale)
    if not image.has_transparency_data:
        return image.convert("RGB")
    coloured = image.convert("RGBA")
    white = Image.new("RGBA", coloured.size, "white")
    return Image.alpha_composite(white, coloured).convert("RGB")


def reason_of(error: Exception) -> str:
    """Return the text of an error on one line, or its type if it has none."""
    # Errors of FFmpeg have this attribute too, and are not all of type OSError.
    return getattr(error, "strerror", None) or error_text(error)


class _Scale(NamedTuple):
    """Scale of a picture with more than 8 bits a channel.

    White is 65535 for whole numbers of 16 bits, or the largest value of a TIFF's bits; 255 for
    those of 32 bits; 1 for floating-point numbers. Inverted, it is the value of black.
    """

    white: float
    is_inverted: bool


def _scale_of(image: Image) -> _Scale | None:
    """Return the scale of a picture that Pillow has opened, or None if it has 8 bits or fewer.

    A transparent sample of a PNG file is put on the scale of the decoded ones on the way, which
    Pillow does not do. Raises ValueError if the file's samples have a sign, which Pillow drops.
    """
    tags: Any = getattr(image, "tag_v2", {})
    mode = image.mode.partition(";")[0]
    if mode not in ("I", "F"):
        if _SIGNED in (tags.get(_SAMPLE_FORMAT) or ()):
            raise ValueError(f"has signed samples, which are no grey levels; {_REMEDY}")
        _scale_transparency(image)
        return None
    if mode == "F":
        white = 1.0
    elif image.mode != "I":
        white = 2.0 ** tags.get(_BITS, (16,))[0] - 1
    else:  # a PGM's numbers are scaled to 16 bits when they are read
        white = 65535.0 if image.format in ("PNG", "PPM") else 255.0
    return _Scale(white, tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)


def _in_8_bits(image: Image, scale: _Scale) -> Image:
    """Return a deep picture as ``L``, or as ``LA`` if one of its values marks transparency.

    The values are ``round(255 · value / white)``. Raises ValueError if one lies outside of 0 to
    white, or none reaches a sixteenth of white unless all are equal.
    """
    from PIL import Image

    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())  # NaN if there is one
    span = f"{image.mode} has values from {low:g} to {high:g}"
    if not 0 <= low <= high <= scale.white:
        raise ValueError(f"mode {span}, but must have 0 to {scale.white:g}; {_REMEDY}")
    if low < high < _DARKEST * scale.white:
        raise ValueError(
            f"mode {span} where white is {scale.white:g}, which would be all but black; {_REMEDY}"
        )
    shares = values.astype(np.float32) / np.float32(scale.white)
    if scale.is_inverted:
        shares = 1 - shares
    grey = Image.fromarray(np.rint(255 * shares).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _scale_transparency(image: Image) -> None:
    transparent = image.info.get("transparency")
    tiles: Any = getattr(image, "tile", None)
    factor = _PNG_FACTORS.get(str(tiles[0][3])) if tiles and image.format == "PNG" else None
    if factor is None or transparent is None:
        return
    samples = transparent if isinstance(transparent, tuple) else (transparent,)
    scaled = tuple(int(sample * factor) for sample in samples)
    image.info["transparency"] = scaled if isinstance(transparent, tuple) else scaled[0]
