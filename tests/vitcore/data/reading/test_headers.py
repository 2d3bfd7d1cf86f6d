"""What a header says is what Pillow finds; whatever has a twist is left to Pillow."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitcore.data.reading import headers

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
TURNED = Image.Exif()
TURNED[0x0112] = 6
CLEAR = PICTURE.copy()
CLEAR.putalpha(128)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 0, "comment": b"x" * 70}),
        ("JPEG", "RGB", {"keep_rgb": True}),
        ("JPEG", "RGB", {"icc_profile": b"p" * 70_000}),
        ("JPEG", "L", {}),
        ("PNG", "RGB", {"icc_profile": b"profile"}),
        ("PNG", "L", {}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("WEBP", "RGB", {"icc_profile": b"profile"}),
    ],
)
def test_everyday_photographs(kind: str, mode: str, options: dict[str, Any]) -> None:
    data = encode(PICTURE.convert(mode), kind, **options)
    header = headers.read(data)
    assert header == headers.Header({"JPEG": "jpg"}.get(kind, kind.lower()), 40, 30, mode == "L", 1)
    assert headers.is_whole(data, header.extension)
    assert not headers.is_whole(data[:-1], header.extension)


def test_jpegs_tell_how_to_turn_them() -> None:
    header = headers.read(encode(PICTURE, "JPEG", exif=TURNED))
    assert header is not None
    assert (header.width, header.height, header.orientation) == (40, 30, 6)


def deep_png() -> bytes:
    data = bytearray(encode(PICTURE, "PNG"))
    data[24] = 16
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8\xff",
        b"RIFF\0\0\0\0WEBP",
        encode(PICTURE, "JPEG")[:25],
        encode(PICTURE, "PNG")[:60],
        encode(PICTURE.convert("CMYK"), "JPEG"),
        encode(PICTURE, "MPO", save_all=True, append_images=[PICTURE]),
        encode(PICTURE.quantize(9), "PNG"),
        encode(PICTURE.convert("1"), "PNG"),
        encode(PICTURE, "PNG", transparency=(0, 0, 0)),
        encode(PICTURE, "PNG", exif=TURNED),
        encode(PICTURE, "PNG", save_all=True, append_images=[PICTURE.rotate(180)]),
        encode(CLEAR, "PNG"),
        deep_png(),
        encode(CLEAR, "WEBP"),
        encode(CLEAR, "WEBP", lossless=True),
        encode(PICTURE, "WEBP", exif=TURNED),
        encode(PICTURE, "WEBP", save_all=True, append_images=[PICTURE.rotate(180)]),
        encode(PICTURE, "GIF"),
        encode(PICTURE, "BMP"),
    ],
)
def test_what_has_a_twist_is_left_to_pillow(data: bytes) -> None:
    assert headers.read(data) is None


def test_a_png_with_a_wrong_checksum_is_not_whole() -> None:
    data = bytearray(encode(PICTURE, "PNG"))
    data[data.find(b"IDAT") + 40] ^= 1
    header = headers.read(bytes(data))
    assert header is not None
    assert not headers.is_whole(bytes(data), header.extension)


def test_a_text_chunk_with_a_wrong_checksum_harms_nobody() -> None:
    data = encode(PICTURE, "PNG")
    text = struct.pack(">I", 3) + b"tEXta\0b" + bytes(4)
    data = data[:33] + text + data[33:]
    header = headers.read(data)
    assert header is not None
    assert headers.is_whole(data, header.extension)
