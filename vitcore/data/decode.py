"""From the bytes of a photograph to pixels: uint8, [3, H, W], RGB, upright; or a reason why not.

Everyday JPEGs and PNGs go through torchvision's decoders, which release the GIL and leave the pixels in channels-last
memory, where resizing is fastest. Everything with a twist (CMYK, palettes, transparency, 16 bits, other formats) goes
through Pillow. The header is read first: nothing is decoded that would not fit in the pixel limit.
"""

from __future__ import annotations

import io
import struct
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, decode_png

MAX_PIXELS = 1 << 26
"""Most pixels of a photograph (67 million): one image then takes at most 200 MB while it is decoded."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_JPEG_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive Huffman: what libjpeg decodes


class BadSampleError(Exception):
    """A sample that cannot be used; the message is the reason."""


class _Header(NamedTuple):
    width: int
    height: int
    plain: bool  # torchvision's decoder gives the right colours


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Pixels of a JPEG, PNG, WebP or anything else Pillow reads; the first frame of an animation.

    EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled to 8 bits.

    Returns:
        uint8 tensor [3, H, W].

    Raises:
        BadSampleError: empty, truncated, corrupt, no image, or larger than `max_pixels`.
    """
    if not data:
        raise BadSampleError("the file is empty")
    try:
        is_jpeg = data.startswith(_JPEG)
        header = _jpeg_header(data) if is_jpeg else _png_header(data) if data.startswith(_PNG) else None
        if header is not None:
            _check_size(header.width, header.height, max_pixels)
        if header is None or not header.plain:
            return _decode_any(data, max_pixels)
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        pixels: Tensor
        if is_jpeg:
            pixels = decode_jpeg(encoded, mode=ImageReadMode.RGB, apply_exif_orientation=True)
        else:
            pixels = decode_png(encoded, mode=ImageReadMode.RGB, apply_exif_orientation=True)
        return pixels
    except BadSampleError:
        raise
    except Exception as error:  # decoders raise whatever they like on hostile bytes; all of it means the same here
        reason = str(error).strip().splitlines()
        raise BadSampleError(f"cannot be decoded: {reason[0] if reason else type(error).__name__}") from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadSampleError(f"{width} by {height} pixels are more than the limit of {max_pixels}")


def _jpeg_header(data: bytes) -> _Header | None:
    """Size and kind from the frame header; None where it is not where it should be."""
    at, adobe = 2, False
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _JPEG_FRAMES and at + 10 <= len(data):
            precision, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            common = components == 1 or (components == 3 and not adobe)
            return _Header(width, height, precision == 8 and common and height > 0)
        if marker == 0xEE and data[at + 4 : at + 9] == b"Adobe":
            adobe = True  # may hold RGB or inverted colours: Pillow knows
        (length,) = struct.unpack_from(">H", data, at + 2)
        at += 2 + length
    return None


def _png_header(data: bytes) -> _Header | None:
    """Size and kind from the first chunk, which must be the header; None where it is not."""
    if len(data) < 33 or data[12:16] != b"IHDR":
        return None
    width, height, depth, colours = struct.unpack_from(">IIBB", data, 16)
    has_key = b"tRNS" in data[: data.find(b"IDAT")]  # one colour declared transparent
    return _Header(width, height, depth == 8 and colours in (0, 2) and not has_key)


def _decode_any(data: bytes, max_pixels: int) -> Tensor:
    with Image.open(io.BytesIO(data)) as image:
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
