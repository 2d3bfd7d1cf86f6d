"""From the bytes of a photograph to pixels: uint8, [3, H, W], RGB, upright; or a reason why not.

Everyday JPEGs go through libjpeg-turbo (simplejpeg), which releases the GIL; they come in channels-last memory, where
resizing is fastest. Everything else goes through Pillow (torchvision's PNG decoder crashes on some crafted files).
The header is read first: nothing is decoded that would not fit in the pixel limit.

Colours are upsampled smoothly and the accurate DCT is taken: libjpeg-turbo's coarser ways would save 3 %.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vitcore.data.ingest import jpeg
from vitcore.data.reading import headers

MAX_PIXELS = 1 << 26
"""Most pixels of a photograph (67 million): one image then takes at most 200 MB while it is decoded."""
SHRINKS = (8, 4, 2)
"""A JPEG can be decoded at 1/8, 1/4 or 1/2 of its size for less; other fractions have no vector code."""


class BadSampleError(Exception):
    """A sample that cannot be used; the message is the reason."""


class Decoded(NamedTuple):
    """Pixels of a photograph."""

    image_CHW: Tensor
    """uint8, [3, H, W] at the size they were decoded at: rounded up, where that is a fraction."""
    shrink: int
    """Each stands for shrink × shrink of the photograph's own."""


class Photograph:
    """An encoded JPEG, PNG, WebP or anything else Pillow reads; of an animation the first frame.

    The size of an everyday JPEG is read from its header, its pixels are decoded when they are asked for; anything else
    is decoded at once. EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled to 8 bits.

    Args:
        data: the file's bytes.
        max_pixels: larger photographs are refused before they are decoded.

    Raises:
        BadSampleError: empty, truncated, corrupt, no image, or larger than `max_pixels`.
    """

    height: int
    """Pixels, upright."""
    width: int
    """Pixels, upright."""

    def __init__(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> None:
        if not data:
            raise BadSampleError("the file is empty")
        self._data, self._max_pixels = data, max_pixels
        self._decoded: dict[int, Decoded] = {}
        self._jpeg: headers.Header | None = None
        with _reasons():
            header = headers.read(data)
            if header is not None:
                _check_size(header.width, header.height, max_pixels)
            if header is not None and header.extension == "jpg":
                self._jpeg = header
                swapped = header.orientation >= 5
                self.height, self.width = (header.width, header.height) if swapped else (header.height, header.width)
                return
            pixels = _decode_any(data, max_pixels)
        self._decoded[1] = Decoded(pixels, 1)
        _, self.height, self.width = pixels.shape

    def decode(self, shrink: int = 1) -> Decoded:
        """The pixels; kept, so that asking again costs nothing.

        Args:
            shrink: 1 or one of `SHRINKS`: an everyday JPEG comes at 1/shrink of its size, anything else comes whole.

        Raises:
            BadSampleError: truncated or corrupt.
        """
        if self._jpeg is None:
            return self._decoded[1]
        if shrink not in self._decoded:
            with _reasons():
                self._decoded[shrink] = self._decode_jpeg(self._jpeg, shrink)
        return self._decoded[shrink]

    def _decode_jpeg(self, header: headers.Header, shrink: int) -> Decoded:
        exactly: dict[str, Any] = {}
        if shrink > 1:
            exactly = {"min_height": -(-header.height // shrink), "min_width": -(-header.width // shrink)}
            exactly["min_factor"] = shrink
        try:
            lying = simplejpeg.decode_jpeg(self._data, "RGB", **exactly)
        except ValueError:  # a fault, however small: Pillow forgives what an ingest forgives, and nothing else
            return Decoded(_decode_any(self._data, self._max_pixels), 1)
        upright = np.ascontiguousarray(jpeg.turn(lying, header.orientation))
        return Decoded(torch.from_numpy(upright).permute(2, 0, 1), shrink)


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """All pixels of a photograph, uint8 [3, H, W].

    Raises:
        BadSampleError: as `Photograph` does.
    """
    return Photograph(data, max_pixels=max_pixels).decode().image_CHW


@contextmanager
def _reasons() -> Iterator[None]:
    """Decoders raise whatever they like on hostile bytes; all of it means the same here."""
    try:
        yield
    except BadSampleError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise BadSampleError(f"cannot be decoded: {reason[0] if reason else type(error).__name__}") from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadSampleError(f"{width} by {height} pixels are more than the limit of {max_pixels}")


def _decode_any(data: bytes, max_pixels: int) -> Tensor:
    with Image.open(io.BytesIO(data), formats=headers.FORMATS) as image:
        _check_size(*image.size, max_pixels)
        upright = ImageOps.exif_transpose(image)
        return torch.from_numpy(np.array(_to_rgb(upright))).permute(2, 0, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow's own conversion would clip 16 bits to 255
        levels = np.asarray(image).astype(np.int64)
        return Image.fromarray((levels.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
