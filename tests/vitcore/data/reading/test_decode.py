"""Bytes to pixels: everyday files exactly, twisted ones rightly, hostile ones with a reason."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image, ImageOps

from vitcore.data.reading.decode import SHRINKS, BadSampleError, Photograph, decode

RNG = np.random.default_rng(0)
SMOOTH = Image.fromarray(RNG.integers(0, 256, (5, 4, 3), np.uint8)).resize((40, 30), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def off_by(ours: torch.Tensor, theirs: torch.Tensor) -> int:
    assert ours.dtype == torch.uint8
    assert ours.shape == theirs.shape
    return int((ours.int() - theirs.int()).abs().max())


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {})])
def test_lossless_formats_come_back_exactly(kind: str, options: dict[str, Any]) -> None:
    assert off_by(decode(encoded(SMOOTH, kind, **options)), pixels(SMOOTH)) == 0


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}, {"keep_rgb": True}, {"exif": b"Exif\0\0torn"}],
)
def test_jpeg_agrees_with_pillow(options: dict[str, Any]) -> None:
    data = encoded(SMOOTH, "JPEG", **options)
    assert off_by(decode(data), pixels(Image.open(io.BytesIO(data)))) <= 2


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("side", [(301, 403), (64, 33)])
def test_a_fraction_of_a_jpeg_is_the_photograph_made_smaller(side: tuple[int, int], turned: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turned
    data = encoded(SMOOTH.resize(side, Image.Resampling.BICUBIC), "JPEG", quality=95, exif=exif)
    photograph = Photograph(data)
    lying = Image.open(io.BytesIO(data))
    whole = ImageOps.exif_transpose(lying)
    assert (photograph.width, photograph.height) == whole.size
    for shrink in (1, *SHRINKS):
        image, got = photograph.decode(shrink)
        assert got == shrink
        assert image.shape == (3, -(-whole.height // shrink), -(-whole.width // shrink))
        small = lying.reduce(shrink)
        small.getexif()[0x0112] = turned
        assert off_by(image, pixels(ImageOps.exif_transpose(small))) <= (12 if shrink > 1 else 0)
        assert photograph.decode(shrink)[0] is image


def test_what_has_no_fractions_comes_whole() -> None:
    for data in (encoded(SMOOTH, "PNG"), encoded(SMOOTH, "WEBP"), encoded(SMOOTH.convert("CMYK"), "JPEG")):
        photograph = Photograph(data)
        image, got = photograph.decode(4)
        assert (got, photograph.height, photograph.width, *image.shape) == (1, 30, 40, 3, 30, 40)


@pytest.mark.parametrize("stray", [b"stray", b"\xff\xd0"])
def test_what_pillow_forgives_a_jpeg_is_forgiven(stray: bytes) -> None:
    data = encoded(SMOOTH, "JPEG")
    scan = data.index(b"\xff\xda")
    place = scan if stray == b"stray" else len(data) - 60  # libjpeg warns of either and goes on
    faulty = data[:place] + stray + data[place:]
    if stray != b"stray":
        with pytest.raises(ValueError, match="Corrupt JPEG data"):
            simplejpeg.decode_jpeg(faulty)
    image, shrink = Photograph(faulty).decode(2)
    assert shrink == 1
    assert off_by(image, pixels(Image.open(io.BytesIO(faulty)))) == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_becomes_three_equal_channels(kind: str) -> None:
    image = decode(encoded(SMOOTH.convert("L"), kind))
    assert image.shape == (3, 30, 40)
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])


def test_cmyk_palette_and_one_bit() -> None:
    cmyk = encoded(SMOOTH.convert("CMYK"), "JPEG", quality=95)
    assert off_by(decode(cmyk), pixels(SMOOTH)) < 40
    assert off_by(decode(encoded(SMOOTH.convert("P"), "PNG")), pixels(SMOOTH.convert("P"))) == 0
    assert set(decode(encoded(SMOOTH.convert("1"), "PNG")).unique().tolist()) == {0, 255}


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_white(mode: str) -> None:
    clear = Image.new("RGBA", (6, 5), (200, 10, 10, 0))
    clear.putpixel((0, 0), (10, 10, 10, 255))
    image = decode(encoded(clear.convert(mode), "PNG"))
    assert image[:, 0, 0].tolist() == [10, 10, 10]
    assert image[:, 1:].unique().tolist() == [255]


def test_a_colour_declared_transparent_is_white_too() -> None:
    image = decode(encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3)))
    assert image.unique().tolist() == [255]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = Image.fromarray(np.array([[0, 256, 32768, 65535]], np.uint16))
    assert decode(encoded(deep, "PNG"))[0].tolist() == [[0, 1, 128, 255]]


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_exif_orientation_is_applied(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    turned = SMOOTH.transpose(Image.Transpose.ROTATE_90)
    image = decode(encoded(turned, kind, exif=exif, quality=95))
    assert off_by(image, pixels(SMOOTH)) < 40


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    image = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert image[:, 2, 2].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_truncated_files_are_bad_samples(kind: str, share: float) -> None:
    data = encoded(SMOOTH.resize((200, 200)), kind)
    with pytest.raises(BadSampleError, match=r"\w"):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\x00\x00" * 3, b"\x89PNG\r\n\x1a\n", b"<svg></svg>", b"\0" * 1000],
    ids=["empty", "jpeg-start", "jpeg-loop", "png-start", "svg", "zeros"],
)
def test_what_is_no_photograph_is_a_bad_sample(data: bytes) -> None:
    with pytest.raises(BadSampleError, match=r"\w"):
        decode(data)


def bomb(kind: str, side: int) -> bytes:
    """A file whose header promises side × side pixels."""
    small = encoded(SMOOTH, kind)
    if kind == "PNG":
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
    frame = small.index(b"\xff\xc0")
    return small[: frame + 5] + struct.pack(">HH", side, side) + small[frame + 9 :]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_bombs_are_refused_before_they_are_decoded(kind: str, side: int) -> None:
    with pytest.raises(BadSampleError, match="more than the limit"):
        decode(bomb(kind, side))


def test_the_pixel_limit_holds_for_every_decoder() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "BMP"):
        assert decode(encoded(SMOOTH, kind), max_pixels=1200).shape == (3, 30, 40)
        with pytest.raises(BadSampleError, match="40 by 30 pixels are more than the limit of 1199"):
            decode(encoded(SMOOTH, kind), max_pixels=1199)


def test_a_png_with_an_impossible_filter_is_a_bad_sample() -> None:
    """Some decoders read past their table of filters here, which ends the process."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"\0" + bytes(24) + (b"\x09" + bytes(range(24))) * 7
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    with pytest.raises(BadSampleError, match="cannot be decoded"):
        decode(data)


def test_what_would_run_another_program_is_not_opened() -> None:
    with pytest.raises(BadSampleError):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
