"""Images of a record: found inside one folder only, opened when they are used."""

from __future__ import annotations

from base64 import b64decode
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from g2rpo._shown import shown

from .broken import BrokenRecord
from .grey import in_8_bits, scale_of

if TYPE_CHECKING:
    from PIL.Image import Image

ImageSource: TypeAlias = "str | bytes | Image"
"""A path as it stands in the record, the bytes of an image file, or an open image."""


def image_source(value: Any) -> ImageSource:
    """Return where an image comes from.

    Parameters
    ----------
    value : object
        A path, a data URI, a Pillow image, or the ``{"bytes", "path"}`` of datasets, in which the
        bytes win: the path is then the name that the file had.

    Returns
    -------
    str, bytes or Image

    Raises
    ------
    BrokenRecord
        If it is anything else, or empty.

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
    """Return the file that a data URI holds.

    Raises
    ------
    BrokenRecord
        If it is not written in base64, or is empty.

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
    """Return the file that a record's path names, which must lie inside a folder.

    Parameters
    ----------
    path : str
        Relative to the folder, or absolute.
    folder : Path, optional
        Links and ``..`` are resolved before anything is compared. None allows no path at all.
    kind : str
        ``"image"`` or ``"video"``, for the error, which names ``data.image_dir`` or
        ``data.video_dir``.

    Returns
    -------
    Path
        An existing file, resolved.

    Raises
    ------
    BrokenRecord
        If the path leads out of the folder, or to no file.
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

    Parameters
    ----------
    source : str, bytes or Image
        What :func:`image_source` returned.
    folder : Path, optional
        Of paths.
    kind : str
        Of :func:`locate`.

    Returns
    -------
    Image
        Decoded, with no file left open.

    Raises
    ------
    BrokenRecord
        If it cannot be found or decoded, or has grey levels that 8 bits cannot hold.
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
    """Return a text that tells images apart: the path as it stands, or a hash of the contents."""
    if isinstance(source, str):
        return source
    data = source if isinstance(source, bytes) else source.tobytes() + repr(source.size).encode()
    return blake2b(data, digest_size=16).hexdigest()


def _rgb(image: Image) -> Image:
    from PIL import Image, ImageOps

    scale = scale_of(image)
    image = ImageOps.exif_transpose(image)
    if scale is not None:
        image = in_8_bits(image, scale)
    if not image.has_transparency_data:
        return image.convert("RGB")
    coloured = image.convert("RGBA")
    white = Image.new("RGBA", coloured.size, "white")
    return Image.alpha_composite(white, coloured).convert("RGB")


def reason_of(error: Exception) -> str:
    """Return what an error says, on one line, or its kind if it says nothing."""
    # Also FFmpeg's, which are no OSError all of them.
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()) or type(error).__name__
