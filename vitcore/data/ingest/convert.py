"""From any photograph to the bytes that a shard stores: 8-bit RGB or grey, upright, no larger than training needs.

A photograph that is so already passes through byte for byte. Everything else is decoded once, brought to that form and
written as JPEG: resized to a short side, turned as EXIF says, CMYK and 16 bits converted, palettes resolved,
transparency laid over white, the first frame of an animation taken. Everyday JPEGs take the fast way
(`vitcore.data.ingest.jpeg`), everything else goes through Pillow, which also has the last word on JPEGs with a fault.

Colour profiles are not applied: numbers are stored as they are, as readers of datasets take them. A photograph that
passes keeps its profile, one that is written anew does not.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vitcore.data.ingest import jpeg
from vitcore.data.ingest.measure import measure
from vitcore.data.reading import headers
from vitcore.data.reading.headers import Header

_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_PNG_DEPTH = 24  # offset of the bit depth in a PNG
_LONGEST = 65500  # pixels a side that libjpeg writes
_BYTES_PER_PIXEL = {True: 0.17, False: 0.34}  # of JPEGs at quality 92 and 256 pixels, by whether they are grey

Size = tuple[int, int]
"""Width and height, in pixels."""


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
    verify: Literal["decode", "header"] = "decode"
    """How far a photograph that passes untouched is looked at: decoded, or trusted for its header and its end."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A photograph as it is stored."""

    data: bytes
    extension: str
    width: int
    height: int
    original_width: int
    original_height: int
    phash: int | None
    """64-bit difference hash (`vitcore.data.ingest.measure`); None where the pixels were not looked at."""
    sums: tuple[int, int, int] | None
    """Sum of each channel's 8-bit values (RGB); None where the pixels were not looked at."""
    squares: tuple[int, int, int] | None
    """Sum of their squares; None where the pixels were not looked at."""


def convert(data: bytes, form: Form) -> Stored:
    """Bring one photograph to its stored form: the same bytes for the same input, whoever does it.

    Raises:
        UnfitError: empty, no image, truncated or corrupt, too many pixels.
    """
    header = headers.read(data)
    if header is not None:
        _check_pixels(header.width, header.height, form)
        passes = header.orientation == 1 and _target((header.width, header.height), form.resize) is None
        if passes and form.verify == "header" and headers.is_whole(data, header.extension):
            size = header.width, header.height
            return Stored(data, header.extension, *size, *size, phash=None, sums=None, squares=None)
        if header.extension == "jpg":
            try:
                return _convert_jpeg(data, header, passes, form)
            except ValueError:  # a fault, but perhaps one that does no harm
                pass
    return _convert_any(data, form)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Pillow from warning of what is judged here anyway: large images, odd metadata."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def estimate(data: bytes, resize: int | None) -> int:
    """About how many bytes the photograph will take once stored, from its header alone."""
    try:
        header = headers.read(data)
        if header is not None:
            size, grey = (header.width, header.height), header.grey
        else:
            with Image.open(io.BytesIO(data), formats=headers.FORMATS) as image:
                size, grey = image.size, image.mode in ("L", "1", "I;16")
    except Exception:  # judged when it is converted
        return len(data)
    target = _target(size, resize)
    return len(data) if target is None else min(len(data), int(target[0] * target[1] * _BYTES_PER_PIXEL[grey]))


def _convert_jpeg(data: bytes, header: Header, passes: bool, form: Form) -> Stored:
    original = header.width, header.height
    target = _target(original, form.resize)
    pixels = jpeg.decode(data, header, target)
    if not passes:
        pixels = jpeg.turn(jpeg.resize(pixels, target) if target else pixels, header.orientation)
        data = jpeg.encode(pixels, form.quality)
    return _stored(data, "jpg", pixels, original)


def _convert_any(data: bytes, form: Form) -> Stored:
    with _open(data, form) as image:
        original = image.size
        try:
            if image.format == "PNG":
                _check_png(image, data)
            passes = _passes(image, data, form.resize)
            image = _load(image) if passes else _plain(_load(image, _target(image.size, form.resize)))
        except UnfitError:
            raise
        except Exception as error:  # decoders raise whatever they like on hostile bytes; all of it means the same here
            raise UnfitError("truncated or corrupt") from error
        extension = _EXTENSIONS[image.format or ""] if passes else "jpg"
        if not passes:
            target = _target(image.size, form.resize)
            if target:
                image = image.resize(target, Image.Resampling.BICUBIC, reducing_gap=2.0)
            if max(image.size) > _LONGEST:
                raise UnfitError(f"a side of more than {_LONGEST} pixels")
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=form.quality)
            data = buffer.getvalue()
        return _stored(data, extension, np.asarray(image).reshape(image.height, image.width, -1), original)


def _stored(data: bytes, extension: str, pixels_HWC: NDArray[np.uint8], original: Size) -> Stored:
    height, width, _ = pixels_HWC.shape
    phash, sums, squares = measure(np.ascontiguousarray(pixels_HWC))
    return Stored(data, extension, width, height, *original, phash, sums, squares)


def _open(data: bytes, form: Form) -> Image.Image:
    if not data:
        raise UnfitError("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=headers.FORMATS)
    except Image.DecompressionBombError as error:
        raise UnfitError(f"more than {form.max_pixels} pixels") from error
    except UnidentifiedImageError as error:
        raise UnfitError("not an image") from error
    except Exception as error:
        raise UnfitError("truncated or corrupt") from error
    _check_pixels(*image.size, form)
    return image


def _check_pixels(width: int, height: int, form: Form) -> None:
    if width * height > form.max_pixels:
        raise UnfitError(f"more than {form.max_pixels} pixels")


def _check_png(image: Image.Image, data: bytes) -> None:
    """Find what Pillow would not: it looks at no checksum of pixels, and takes their faults for faults of the EXIF."""
    if not headers.is_whole(data, "png"):
        raise UnfitError("truncated or corrupt")
    image.load()  # before the EXIF is asked for, which may lie behind the pixels


def _passes(image: Image.Image, data: bytes, resize: int | None) -> bool:
    """Whether the bytes can be stored as they are: a common format, 8 bits, upright, one frame, small enough."""
    return (
        image.format in _EXTENSIONS
        and image.mode in ("RGB", "L")
        and "transparency" not in image.info
        and not (image.format == "PNG" and data[_PNG_DEPTH] != 8)
        and not getattr(image, "is_animated", False)
        and headers.orientation(image) == 1
        and _target(image.size, resize) is None
    )


def _load(image: Image.Image, target: Size | None = None) -> Image.Image:
    if target and image.format == "JPEG":
        image.draft(None, (2 * target[0], 2 * target[1]))  # decodes at a fraction, never below twice what we keep
    image.load()
    return image


def _target(size: Size, resize: int | None) -> Size | None:
    """Width and height after resizing; None when the image is small enough."""
    short = min(size)
    if resize is None or short <= resize:
        return None
    width, height = (max(1, round(side * resize / short)) for side in size)
    return width, height


def _plain(image: Image.Image) -> Image.Image:
    """8-bit RGB or grey, upright, of any decoded image."""
    upright = image if headers.orientation(image) == 1 else ImageOps.exif_transpose(image)
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
