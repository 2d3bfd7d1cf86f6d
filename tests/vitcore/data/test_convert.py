"""Any photograph becomes 8-bit RGB or grey, upright and small, or a reason why not."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitcore.data.convert import Form, UnfitError, convert, estimate, quiet

FORM = Form(resize=64, quality=90, max_pixels=1_000_000)


def photograph(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth, brighter to the right and to the bottom: left and top stay recognisable."""
    across, down = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 50, height))
    return Image.fromarray((across + down).astype(np.uint8)).convert(mode)


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize(("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_small_and_plain_passes_untouched(kind: str, extension: str, mode: str) -> None:
    if (kind, mode) == ("WEBP", "L"):
        mode = "RGB"  # WebP has no grey
    data = encode(photograph(100, 64, mode), kind)
    stored = convert(data, FORM)
    assert stored.data == data
    assert (stored.extension, stored.width, stored.height) == (extension, 100, 64)


@pytest.mark.parametrize("size", [(640, 128), (128, 640), (65, 65), (1000, 900)])
def test_large_is_brought_to_the_short_side(size: tuple[int, int]) -> None:
    stored = convert(encode(photograph(*size)), FORM)
    assert min(stored.width, stored.height) == 64
    assert (stored.original_width, stored.original_height) == size
    assert stored.width / stored.height == pytest.approx(size[0] / size[1], rel=0.02)
    assert opened(stored.data).size == (stored.width, stored.height)
    assert stored.extension == "jpg"


def test_no_resize_keeps_the_size() -> None:
    data = encode(photograph(300, 200))
    assert convert(data, Form(None, 90, 1_000_000)).data == data


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_exif_rotation_is_applied_once(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = convert(encode(photograph(90, 60), exif=exif), FORM)
    turned = orientation >= 5
    assert (stored.width, stored.height) == ((60, 90) if turned else (90, 60))
    image = opened(stored.data)
    assert image.getexif().get(0x0112, 1) == 1


def test_unreadable_exif_turns_nothing_and_warns_nobody(recwarn: pytest.WarningsRecorder) -> None:
    data = encode(photograph(90, 60), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    with quiet():
        assert convert(data, FORM).data == data
    assert not recwarn.list


def test_cmyk_becomes_rgb() -> None:
    stored = convert(encode(photograph(50, 50).convert("CMYK")), FORM)
    image = opened(stored.data)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image.convert("L"), int) - np.asarray(photograph(50, 50).convert("L"), int)).mean() < 4


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    levels = (np.asarray(photograph(50, 50, "L")).astype(np.uint16)) << 8
    stored = convert(encode(Image.fromarray(levels), "PNG"), FORM)
    image = opened(stored.data)
    assert image.mode == "L"
    assert np.abs(np.asarray(image, int) - (levels >> 8)).mean() < 3


def png(width: int, height: int, depth: int, rows: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bit_colour_png_is_rewritten() -> None:
    rows = b"".join(b"\0" + struct.pack(">HHH", 65535, 32768, 0) * 8 for _ in range(8))
    stored = convert(png(8, 8, 16, rows), FORM)
    assert stored.extension == "jpg"
    assert np.abs(np.asarray(opened(stored.data), int)[4, 4] - [255, 128, 0]).max() < 12


def test_transparency_lies_over_white() -> None:
    image = photograph(50, 50).convert("RGBA")
    image.putalpha(0)
    palette = Image.new("P", (50, 50), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    for data in (
        encode(image, "PNG"),
        encode(image, "WEBP", lossless=True),
        encode(palette, "PNG", transparency=0),
        encode(photograph(50, 50, "LA").point(lambda _: 0), "PNG"),
    ):
        stored = convert(data, FORM)
        pixels = opened(stored.data)
        assert pixels.mode in ("RGB", "L")
        assert np.asarray(pixels).min() > 250


def test_palette_and_bilevel() -> None:
    assert opened(convert(encode(photograph(50, 50).quantize(16), "PNG"), FORM).data).mode == "RGB"
    assert opened(convert(encode(photograph(50, 50).convert("1"), "PNG"), FORM).data).mode == "L"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    stored = convert(data, FORM)
    red, _, blue = np.asarray(opened(stored.data), int)[20, 20]
    assert stored.extension == "jpg"
    assert red > 200 > blue


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM", "GIF"])
def test_other_formats_become_jpeg(kind: str) -> None:
    assert convert(encode(photograph(40, 40), kind), FORM).extension == "jpg"


JPEG = encode(photograph(200, 200))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<html></html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (JPEG[: len(JPEG) // 2], "truncated or corrupt"),
        (JPEG[:30], "not an image|truncated or corrupt"),
        (encode(photograph(50, 50), "PNG")[:-40], "truncated or corrupt"),
        (encode(Image.new("L", (1001, 1000)), "PNG"), "more than 1000000 pixels"),
        (encode(Image.new("F", (10, 10)), "TIFF"), "floating-point"),
    ],
)
def test_what_cannot_be_stored_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnfitError, match=reason):
        convert(data, FORM)


@pytest.mark.parametrize("side", [1100, 60_000])
def test_a_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    with pytest.raises(UnfitError, match="more than 1000000 pixels"):
        convert(png(side, side, 8, b"never inflated"), FORM)


def test_moments_and_hash() -> None:
    image = photograph(64, 64)
    stored = convert(encode(image, "PNG"), FORM)
    pixels = np.asarray(image, np.int64).reshape(-1, 3)
    assert stored.sums == tuple(pixels.sum(0))
    assert stored.squares == tuple((pixels**2).sum(0))
    smaller = convert(encode(image.resize((48, 48)), quality=60), FORM)
    mirrored = convert(encode(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "PNG"), FORM)
    assert (stored.phash ^ smaller.phash).bit_count() <= 4
    assert (stored.phash ^ mirrored.phash).bit_count() > 20


def test_estimate() -> None:
    small, large = encode(photograph(64, 64)), encode(photograph(1000, 1000, "RGB"), "BMP")
    assert estimate(small, 64) == len(small)
    assert estimate(large, 64) < 2000
    assert estimate(b"nothing", 64) == 7
