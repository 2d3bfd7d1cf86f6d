"""Any photograph becomes 8-bit RGB or grey, upright and small, or a reason why not."""

import hashlib
import io
import os
import random
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitcore.data.ingest.convert import Form, UnfitError, convert, estimate, quiet
from vitcore.data.reading.decode import decode

FORM = Form(resize=64, quality=90, max_pixels=1_000_000)
TRUSTING = Form(resize=64, quality=90, max_pixels=1_000_000, verify="header")


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


def test_grey_stays_grey_when_it_is_resized() -> None:
    assert opened(convert(encode(photograph(300, 200, "L")), FORM).data).mode == "L"


def test_quality_and_sampling_are_those_pillow_writes() -> None:
    ours = opened(convert(encode(photograph(300, 200)), FORM).data)
    theirs = opened(encode(photograph(96, 64), quality=90))
    assert ours.quantization == theirs.quantization  # type: ignore[attr-defined]
    assert ours.layer == theirs.layer  # type: ignore[attr-defined]


def busy(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(3).integers(0, 256, (height // 20 + 1, width // 20 + 1, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("short", [100, 150, 256, 300, 640])
def test_both_ways_give_the_same_picture(short: int) -> None:
    """Everyday JPEGs, some decoded at a fraction, against lossless copies that go through Pillow."""
    data = encode(busy(short * 3 // 2, short), quality=95)
    fast, slow = convert(data, FORM), convert(encode(opened(data), "PNG"), FORM)
    assert (fast.width, fast.height) == (slow.width, slow.height)
    difference = np.asarray(opened(fast.data), float) - np.asarray(opened(slow.data), float)
    assert np.sqrt((difference**2).mean()) < 4
    assert (fast.phash ^ slow.phash).bit_count() <= 2
    assert fast.sums == pytest.approx(slow.sums, rel=0.003)
    assert fast.squares == pytest.approx(slow.squares, rel=0.01)


@pytest.mark.parametrize("size", [(90, 60), (270, 180)])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_exif_rotation_is_applied_once(orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    fast, slow = (convert(encode(photograph(*size), kind, exif=exif), FORM) for kind in ("JPEG", "PNG"))
    turned = orientation >= 5
    short = min(64, *size)
    long = round(short * 1.5)
    assert (fast.width, fast.height) == ((short, long) if turned else (long, short))
    assert (slow.width, slow.height) == (fast.width, fast.height)
    assert (fast.original_width, fast.original_height) == size
    image = opened(fast.data)
    assert image.getexif().get(0x0112, 1) == 1
    assert np.abs(np.asarray(image, int) - np.asarray(opened(slow.data), int)).max() < 12


def test_a_rotation_that_only_xmp_tells_of_is_applied() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    stored = convert(encode(photograph(90, 60), xmp=xmp), FORM)
    assert (stored.width, stored.height) == (60, 90)


def test_an_orientation_that_does_not_exist_turns_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    data = encode(photograph(90, 60), exif=exif)
    assert convert(data, FORM).data == data


def test_of_several_pictures_in_a_jpeg_the_first_is_taken() -> None:
    data = encode(photograph(90, 60), "MPO", save_all=True, append_images=[Image.new("RGB", (90, 60))])
    stored = convert(data, FORM)
    assert len(stored.data) < len(data)
    assert opened(stored.data).format == "JPEG"


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
        (encode(Image.new("L", (70_000, 1)), "BMP"), "a side of more than 65500 pixels"),
    ],
)
def test_what_cannot_be_stored_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnfitError, match=reason):
        convert(data, FORM)


@pytest.mark.parametrize("form", [FORM, TRUSTING], ids=["decode", "header"])
def test_a_png_with_changed_bytes_is_refused(form: Form) -> None:
    data = bytearray(encode(busy(60, 60), "PNG"))
    data[len(data) // 2] ^= 0x55
    with pytest.raises(UnfitError, match="truncated or corrupt"):
        convert(bytes(data), form)
    chunk = data.find(b"IDAT")  # with a checksum that agrees
    (size,) = struct.unpack_from(">I", data, chunk - 4)
    data[chunk + 4 + size : chunk + 8 + size] = struct.pack(">I", zlib.crc32(data[chunk : chunk + 4 + size]))
    with pytest.raises(UnfitError, match="truncated or corrupt"):
        convert(bytes(data), FORM)


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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_trusted_header_tells_the_size_and_nothing_of_the_pixels(kind: str) -> None:
    data = encode(photograph(100, 64), kind)
    trusted, decoded = convert(data, TRUSTING), convert(data, FORM)
    assert (trusted.data, trusted.extension) == (data, decoded.extension)
    assert (trusted.width, trusted.height, trusted.original_width, trusted.original_height) == (100, 64, 100, 64)
    assert (trusted.phash, trusted.sums, trusted.squares) == (None, None, None)
    assert decoded.phash is not None


def test_a_trusted_header_does_not_vouch_for_a_file_cut_short() -> None:
    assert convert(SMALL["JPEG"] + bytes(9), TRUSTING).phash is None  # padding is no damage
    for data in SMALL.values():
        with pytest.raises(UnfitError, match="truncated or corrupt"):
            convert(data[:-20], TRUSTING)


def test_a_trusted_header_spares_the_decoding() -> None:
    data = png(8, 8, 8, b"\x09" * 200)  # a filter that does not exist
    assert convert(data, TRUSTING).data == data
    with pytest.raises(UnfitError, match="truncated or corrupt"):
        convert(data, FORM)


def test_what_is_not_plain_is_decoded_whatever_the_header_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = photograph(50, 40)
    clear = image.copy()
    clear.putalpha(128)
    for data in (
        encode(image, exif=exif),
        encode(image, "PNG", exif=exif),
        encode(image, "WEBP", exif=exif),
        encode(image.convert("CMYK")),
        encode(image.quantize(16), "PNG"),
        encode(clear, "WEBP"),
        encode(image, "PNG", save_all=True, append_images=[Image.new("RGB", (50, 40))]),
        encode(image, "GIF"),
        encode(photograph(300, 300)),
    ):
        assert convert(data, TRUSTING) == convert(data, FORM)
        assert convert(data, TRUSTING).phash is not None


SMALL = {kind: encode(busy(64, 60), kind) for kind in ("JPEG", "PNG", "WEBP")}


def mutated(data: bytes, rng: random.Random) -> bytes:
    at, some = rng.randrange(len(data)), rng.randbytes(rng.randrange(1, 30))
    return rng.choice(
        [
            data[:at],
            data + some,
            data[:at] + some + data[at:],
            data[:at] + data[at + len(some) :],
            data[:at] + some[:1] + data[at + 1 :],
            data[:at] + some + data[at + len(some) :],
        ]
    )


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("resize", [None, 40])
def test_any_bytes_are_stored_readable_or_refused(kind: str, resize: int | None) -> None:
    rng = random.Random(f"{kind} {resize}")
    form, header = Form(resize, 90, 1_000_000), Form(resize, 90, 1_000_000, "header")
    fates = {"stored": 0, "refused": 0}
    for data in (mutated(SMALL[kind], rng) for _ in range(150)):
        with quiet():
            try:
                stored = convert(data, form)
            except UnfitError:
                fates["refused"] += 1
            else:
                fates["stored"] += 1
                assert tuple(decode(stored.data).shape) == (3, stored.height, stored.width)
            with suppress(UnfitError):
                convert(data, header)
    assert min(fates.values()) > 10


ELSEWHERE = """
import hashlib, os, sys
import torch
from vitcore.data.ingest.convert import Form, convert
torch.set_num_threads(4)
threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
data = convert(sys.stdin.buffer.read(), Form(64, 90, 10**7)).data
print(hashlib.sha256(data).hexdigest(), (len(os.listdir("/proc/self/task")) if threads else 0) - threads)
"""


def test_the_bytes_depend_on_no_processor_and_no_thread() -> None:
    """Torch's and libjpeg's code without vectors, and four threads here; no thread is started behind the caller's."""
    data = encode(busy(900, 600))
    with ThreadPoolExecutor(4) as pool:
        (ours,) = set(pool.map(lambda _: convert(data, FORM).data, range(8)))
    environ = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "JSIMD_FORCENONE": "1"}
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], input=data, capture_output=True, check=True, env=environ)
    assert done.stdout.decode().split() == [hashlib.sha256(ours).hexdigest(), "0"]
