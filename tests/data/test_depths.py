"""Pictures of more than 8 bits keep their grey levels, or are refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from g2rpo_trainer.data import open_source
from g2rpo_trainer.data.images import open_image
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.record import BrokenRecord

from .conftest import opened, records_of, sums


def levels(data):
    """Return the grey levels of a picture's first row, as a model sees it."""
    seen = np.asarray(open_image(data, None))[0]
    assert (seen == seen[:, :1]).all()  # grey
    return seen[:, 0].tolist()


def reason(data):
    with pytest.raises(BrokenRecord) as caught:
        open_image(data, None)
    return str(caught.value).removeprefix("an image cannot be read (").removesuffix(")")


def png(bits, colour, samples, size, transparent=None):
    """Return a PNG file of one row, by its specification."""

    def chunk(name, data):
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", size, 1, bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"tRNS", transparent) if transparent else b""]
    parts += [chunk(b"IDAT", zlib.compress(b"\0" + samples)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(values, *, bits=None, white_is_zero=False):
    """Return a TIFF file of one row, by its specification; 12 bits are packed."""
    data = values.tobytes()
    if bits == 12:
        digits = "".join(f"{value:03x}" for value in values)
        data = bytes.fromhex(digits + "0" * (len(digits) % 2))
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    bits = bits or 8 * values.itemsize
    tags = {256: len(values), 257: 1, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 8}
    tags |= {277: 1, 278: 1, 279: len(data), 339: kind}
    padded = data + b"\0" * (len(data) % 2)
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + rows + b"\0" * 4
    return b"II*\0" + struct.pack("<I", 8 + len(padded)) + padded + directory


GREY_16 = np.asarray([0, 20000, 40000, 65535], np.uint16)
BIG_ENDIAN = GREY_16.astype(">u2").tobytes()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(16, 0, BIG_ENDIAN, 4), [0, 78, 156, 255]),
        (tiff(GREY_16), [0, 78, 156, 255]),
        (tiff(GREY_16, white_is_zero=True), [255, 177, 99, 0]),
        (tiff(np.asarray([0, 1000, 2000, 4095], "<u2"), bits=12), [0, 62, 125, 255]),
        (b"P5 4 1 65535\n" + BIG_ENDIAN, [0, 78, 156, 255]),
        (b"P5 3 1 4095\n" + struct.pack(">3H", 0, 2000, 4095), [0, 125, 255]),
        (tiff(np.asarray([0, 100, 255], "<i4")), [0, 100, 255]),
        (tiff(np.asarray([0, 100, 255], "<i2")), [0, 100, 255]),
        (tiff(np.asarray([0, 0.5, 1], "<f4")), [0, 128, 255]),
        (tiff(np.asarray([0, 0.5, 1], "<f4"), white_is_zero=True), [255, 128, 0]),
        (b"Pf 3 1 -1.0\n" + struct.pack("<3f", 0, 0.25, 1), [0, 64, 255]),
        (png(1, 0, bytes([0b10100000]), 4), [255, 0, 255, 0]),
        (png(2, 0, bytes([0b00011011]), 4), [0, 85, 170, 255]),
        (tiff(np.asarray([0, 100, 255], "u1")), [0, 100, 255]),
        (tiff(np.asarray([0, 100, 255], "u1"), white_is_zero=True), [255, 155, 0]),
    ],
)
def test_files_keep_their_grey_levels(data, expected):
    assert levels(data) == expected


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY_16, [0, 78, 156, 255]),
        (np.asarray([0, 100, 255], np.int32), [0, 100, 255]),
        (np.asarray([0, 0.5, 1], np.float32), [0, 128, 255]),
        (np.asarray([7, 7], np.uint16), [0, 0]),  # nothing to tell apart
        (np.asarray([False, True]), [0, 255]),
    ],
)
def test_pictures_from_arrays_keep_their_grey_levels(array, expected):
    assert levels(Image.fromarray(array[None])) == expected


def test_big_endian_pictures():
    picture = Image.frombytes("I;16B", (4, 1), BIG_ENDIAN)
    assert levels(picture) == [0, 78, 156, 255]


REMEDY = "; scale the values and save them with 8 bits a channel"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            tiff(np.asarray([-5, 9], "<i2")),
            "mode I has values from -5 to 9, but must have 0",
        ),
        (tiff(np.asarray([0, 256], "<i4")), "mode I has values from 0 to 256, but must have"),
        (tiff(np.asarray([0, 2**32 - 1], "<u4")), "mode I has values from -1 to 0, but must have"),
        (
            tiff(np.asarray([0, 255], "<f4")),
            "mode F has values from 0 to 255, but must have",
        ),
        (tiff(np.asarray([0, np.nan], "<f4")), "mode F has values from nan to nan, but must have"),
        (tiff(np.asarray([0, np.inf], "<f4")), "mode F has values from 0 to inf, but must have"),
        (tiff(np.asarray([-0.1, 1], "<f4")), "mode F has values from -0.1 to 1, but must have"),
        (tiff(np.asarray([0, 4095], "<u2")), "mode I;16 has values from 0 to 4095 where white"),
        (
            tiff(np.asarray([0, 9], "<i4")),
            "mode I has values from 0 to 9 where white",
        ),
        (tiff(np.asarray([-5, 9], "i1")), "has signed samples, which are no grey levels"),
    ],
)
def test_what_would_lose_its_grey_levels_is_refused(data, text):
    assert reason(data).startswith(text)
    assert reason(data).endswith(REMEDY)


@pytest.mark.parametrize("kind", ["<f8", "<u8"])
def test_what_pillow_does_not_know_is_refused(kind):
    assert reason(tiff(np.asarray([0, 1], kind))) == "cannot identify image file"


def test_colour_of_16_bits():
    samples = struct.pack(">6H", 0, 20000, 40000, 65535, 1000, 256)
    assert np.asarray(open_image(png(16, 2, samples, 2), None)).tolist() == [
        [[0, 78, 156], [255, 3, 1]]
    ]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(16, 0, BIG_ENDIAN, 4, struct.pack(">H", 20000)), [0, 255, 156, 255]),
        (png(2, 0, bytes([0b00011011]), 4, struct.pack(">H", 1)), [0, 255, 170, 255]),
        (png(4, 0, bytes([0x1F]), 2, struct.pack(">H", 1)), [255, 255]),
        (png(8, 0, bytes([9, 10]), 2, struct.pack(">H", 9)), [255, 10]),
        (png(16, 2, b"\0" * 6, 1, b"\0" * 6), [255]),
        (png(16, 4, struct.pack(">4H", 0, 65535, 0, 0), 2), [0, 255]),
        (png(8, 4, bytes([100, 255, 100, 0]), 2), [100, 255]),
    ],
)
def test_what_is_transparent_becomes_white(data, expected):
    assert levels(data) == expected


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("LA", (100, 0), [255, 255, 255]),
        ("LA", (100, 255), [100, 100, 100]),
        ("PA", (0, 0), [255, 255, 255]),
        ("RGBA", (200, 0, 0, 255), [200, 0, 0]),
        ("RGBA", (0, 0, 0, 0), [255, 255, 255]),
        ("CMYK", (0, 0, 0, 155), [100, 100, 100]),
        ("CMYK", (0, 255, 255, 0), [255, 0, 0]),
        ("YCbCr", (100, 128, 128), [100, 100, 100]),
        ("1", 1, [255, 255, 255]),
    ],
)
def test_other_modes(mode, colour, expected):
    assert list(open_image(Image.new(mode, (2, 1), colour), None).getpixel((0, 0))) == expected


def test_palettes_with_a_transparent_colour():
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=1)
    seen = open_image(file.getvalue(), None)
    assert [seen.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]


def test_a_deep_picture_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    file = io.BytesIO()
    Image.fromarray(GREY_16[None]).save(file, "PNG", exif=exif)
    seen = np.asarray(open_image(file.getvalue(), None))
    assert seen[:, 0, 0].tolist() == [0, 78, 156, 255]


def test_a_source_refuses_a_deep_picture_with_its_place(write, tmp_path):
    (tmp_path / "depth.tif").write_bytes(tiff(np.asarray([0.5, 3.5], "<f4")))
    source = opened(write([{**row, "images": "depth.tif"} for row in sums(3)]))
    with pytest.raises(RunError, match=r"line \d: image 'depth.tif' cannot be read \(mode F has"):
        records_of(source)


def test_a_source_gives_the_levels_of_a_float_picture():
    picture = tiff(np.asarray([0, 0.5, 1], "<f4"))
    for record in records_of(open_source(rows=[{**row, "image": picture} for row in sums(3)])):
        assert np.asarray(record.images[0])[0, :, 0].tolist() == [0, 128, 255]
