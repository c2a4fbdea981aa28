"""Pictures with more than 8 bits a pixel, such as scans, depth maps and X-rays, in 8 bits.

A picture is scaled by the white that its file states, never by its own extremes, so that equal
numbers are equally bright in all pictures of a data set. A picture that would lose its grey levels
in this way is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

# Part of white that the brightest pixel must reach: of 16 bits, below it 16 of 256 levels are left.
_DARKEST = 1 / 16

# Tags of TIFF, and two of their values.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2

# Factor by which Pillow changes the samples of PNG files, but not the one that is transparent.
_PNG_FACTORS = {"L;2": 85.0, "L;4": 17.0, "RGB;16B": 1 / 256}

_REMEDY = "scale the values and save them with 8 bits a channel"


class Scale(NamedTuple):
    """What a deep picture's numbers mean.

    Attributes
    ----------
    white : float
        65535 for whole numbers of 16 bits, or what the bits of a TIFF allow; 255 for those of 32
        bits; 1 for floating-point numbers.
    is_inverted : bool
        Whether 0 is white and `white` black.
    """

    white: float
    is_inverted: bool


def scale_of(image: Image) -> Scale | None:
    """Return the scale of a picture that Pillow has opened, or None if it has 8 bits or fewer.

    A transparent sample of a PNG file is put on the scale of the decoded ones on the way, which
    Pillow does not do.

    Raises
    ------
    ValueError
        If the file's samples have a sign that Pillow drops.
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
    return Scale(white, tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)


def in_8_bits(image: Image, scale: Scale) -> Image:
    """Return a deep picture as ``L``, or as ``LA`` if one of its numbers stands for transparency.

    Parameters
    ----------
    image : Image
        With one channel of whole or floating-point numbers.
    scale : Scale
        Of :func:`scale_of`.

    Returns
    -------
    Image
        ``round(255 · value / white)``.

    Raises
    ------
    ValueError
        If a value lies outside of 0 to white, or none reaches a sixteenth of white unless all are
        equal.
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
