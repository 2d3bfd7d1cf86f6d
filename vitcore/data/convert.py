"""From any photograph to the bytes that a shard stores: 8-bit RGB or grey, upright, no larger than training needs.

A photograph that is so already passes through byte for byte. Everything else is decoded once, brought to that form and
written as JPEG: resized to a short side, turned as EXIF says, CMYK and 16 bits converted, palettes resolved,
transparency laid over white, the first frame of an animation taken.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is opened. Pillow reads more, but some of it (EPS) runs other programs."""
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_ORIENTATION = 0x0112
_PNG_DEPTH = 24  # offset of the bit depth in a PNG
_BYTES_PER_PIXEL = {True: 0.17, False: 0.34}  # of JPEGs at quality 92 and 256 pixels, by whether they are grey


class UnfitError(Exception):
    """A photograph that cannot be stored; the message is the reason, worded so that equal reasons count together."""


@dataclass(frozen=True, slots=True)
class Form:
    """What photographs are brought to."""

    resize: int | None
    """Short side, in pixels; smaller ones are not enlarged. None: every size stays."""
    quality: int
    """JPEG quality of what is written anew."""
    max_pixels: int
    """Larger ones are refused before they are decoded."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A photograph as it is stored."""

    data: bytes
    extension: str
    width: int
    height: int
    original_width: int
    original_height: int
    phash: int
    """64-bit difference hash: bit set where a pixel of an 8 by 8 grid is brighter than its right neighbour."""
    sums: tuple[int, int, int]
    """Sum of each channel's 8-bit values (RGB)."""
    squares: tuple[int, int, int]
    """Sum of their squares."""


def convert(data: bytes, form: Form) -> Stored:
    """Bring one photograph to its stored form.

    Raises:
        UnfitError: empty, no image, truncated or corrupt, too many pixels.
    """
    with _open(data, form.max_pixels) as image:
        original = image.size
        try:
            passes = _passes(image, data, form.resize)
            pixels = _load(image) if passes else _plain(_load(image, _target(image, form.resize)))
        except UnfitError:
            raise
        except Exception as error:  # decoders raise whatever they like on hostile bytes; all of it means the same here
            raise UnfitError("truncated or corrupt") from error
        extension = _EXTENSIONS[image.format or ""] if passes else "jpg"
        if not passes:
            target = _target(pixels, form.resize)
            if target:
                pixels = pixels.resize(target, Image.Resampling.BICUBIC, reducing_gap=2.0)
            buffer = io.BytesIO()
            pixels.save(buffer, "JPEG", quality=form.quality)
            data = buffer.getvalue()
        sums, squares = _moments(pixels)
        return Stored(data, extension, *pixels.size, *original, phash(pixels), sums, squares)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Pillow from warning of what is judged here anyway: large images, odd metadata."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def estimate(data: bytes, resize: int | None) -> int:
    """About how many bytes the photograph will take once stored, from its header alone."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            size, grey = _target(image, resize), image.mode in ("L", "1", "I;16")
    except Exception:  # judged when it is converted
        return len(data)
    return len(data) if size is None else min(len(data), int(size[0] * size[1] * _BYTES_PER_PIXEL[grey]))


def phash(image: Image.Image) -> int:
    """Difference hash of an 8-bit RGB or grey image: survives resizing and recompression."""
    grid = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX, reducing_gap=2.0))
    return int.from_bytes(np.packbits(grid[:, :-1] > grid[:, 1:]).tobytes(), "big")


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise UnfitError("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise UnfitError(f"more than {max_pixels} pixels") from error
    except UnidentifiedImageError as error:
        raise UnfitError("not an image") from error
    except Exception as error:
        raise UnfitError("truncated or corrupt") from error
    if image.width * image.height > max_pixels:
        raise UnfitError(f"more than {max_pixels} pixels")
    return image


def _passes(image: Image.Image, data: bytes, resize: int | None) -> bool:
    """Whether the bytes can be stored as they are: a common format, 8 bits, upright, one frame, small enough."""
    return (
        image.format in _EXTENSIONS
        and image.mode in ("RGB", "L")
        and "transparency" not in image.info
        and not (image.format == "PNG" and data[_PNG_DEPTH] != 8)
        and not getattr(image, "is_animated", False)
        and _orientation(image) == 1
        and _target(image, resize) is None
    )


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # metadata nobody can read turns nothing
        return 1


def _load(image: Image.Image, target: tuple[int, int] | None = None) -> Image.Image:
    if target and image.format == "JPEG":
        image.draft(None, (2 * target[0], 2 * target[1]))  # decodes at a fraction, never below twice what we keep
    image.load()
    return image


def _target(image: Image.Image, resize: int | None) -> tuple[int, int] | None:
    """Width and height after resizing; None when the image is small enough."""
    short = min(image.size)
    if resize is None or short <= resize:
        return None
    width, height = (max(1, round(side * resize / short)) for side in image.size)
    return width, height


def _plain(image: Image.Image) -> Image.Image:
    """8-bit RGB or grey, upright, of any decoded image."""
    upright = image if _orientation(image) == 1 else ImageOps.exif_transpose(image)
    if upright.mode in ("RGB", "L") and "transparency" not in upright.info:
        return upright
    if upright.mode == "F":
        raise UnfitError("floating-point pixels have no known white")
    if upright.mode.startswith("I"):  # Pillow's own conversion would clip 16 bits to 255
        levels = np.asarray(upright).astype(np.int64)
        return Image.fromarray((levels.clip(0, 65535) >> 8).astype(np.uint8))
    if upright.mode == "1":
        return upright.convert("L")
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return upright.convert("RGB")


def _moments(image: Image.Image) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    counts = np.asarray(image.histogram(), dtype=np.int64).reshape(-1, 256)
    levels = np.arange(256, dtype=np.int64)
    channels = [(int(row @ levels), int(row @ levels**2)) for row in counts]
    red, green, blue = channels if len(channels) == 3 else channels * 3
    return (red[0], green[0], blue[0]), (red[1], green[1], blue[1])
