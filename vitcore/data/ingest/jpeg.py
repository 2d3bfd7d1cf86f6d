"""Everyday JPEGs, decoded, brought to a size, turned and written by the fastest parts there are.

Each of them releases the GIL and gives the same bytes on every processor and for every number of threads: libjpeg-turbo
promises that of its vector code, and torch's antialiased bicubic filter works with 8-bit values and whole-number
weights. Torch, slow to import, is imported when a photograph is first resized.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from vitcore.data.reading.headers import Header

Pixels = NDArray[np.uint8]
"""[H, W, 3] RGB or [H, W, 1] grey."""

_MARGIN = 2
"""How many times as large as the target a JPEG is decoded at least, where it is decoded at a fraction of its size.

A fraction keeps the low frequencies of each block of 8 by 8 and cuts the others off sharply. With twice the target's
size the cut lies an octave above what the target can hold, and the result is 46 dB and more from that of a full
decoding, an eighth of the noise that quality 92 adds (36 to 38 dB). Without the margin it would be 37 to 39 dB, as much
as the encoder's own, for a fifth less time.
"""
_FRACTIONS = (8, 4, 2)  # those with vector code; the odd ones cost more than they save


def decode(data: bytes, header: Header, target: tuple[int, int] | None = None) -> Pixels:
    """Pixels as they lie in the file.

    Args:
        data: a JPEG.
        header: its header.
        target: width and height it will be brought to; then it may come at 1/2, 1/4 or 1/8 of its size.

    Raises:
        ValueError: truncated, corrupt, or with any other fault, however small.
    """
    least: dict[str, Any] = {}
    if target:
        for fraction in _FRACTIONS:
            width, height = -(-header.width // fraction), -(-header.height // fraction)
            if width >= _MARGIN * target[0] and height >= _MARGIN * target[1]:
                least = {"min_width": width, "min_height": height}
                break
    pixels: Pixels = simplejpeg.decode_jpeg(data, "gray" if header.grey else "rgb", **least)
    return pixels


def resize(pixels_HWC: Pixels, target: tuple[int, int]) -> Pixels:
    """Pixels at another width and height: bicubic, antialiased."""
    import torch
    from torch.nn.functional import interpolate

    from vitcore.data.loading.one_core import one_core

    width, height = target
    with one_core():
        lying_BCHW = torch.from_numpy(pixels_HWC)[None].permute(0, 3, 1, 2)
        resized_BCHW = interpolate(lying_BCHW, (height, width), mode="bicubic", antialias=True)
    resized: Pixels = resized_BCHW[0].permute(1, 2, 0).numpy()
    return resized


def turn(pixels_HWC: Pixels, orientation: int) -> Pixels:
    """Pixels upright, from how EXIF says they lie."""
    if orientation >= 5:
        pixels_HWC = pixels_HWC.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels_HWC = pixels_HWC[::-1]
    if orientation in (2, 3, 6, 7):
        pixels_HWC = pixels_HWC[:, ::-1]
    return pixels_HWC


def encode(pixels_HWC: Pixels, quality: int) -> bytes:
    """A JPEG, colours at half the resolution (4:2:0).

    Raises:
        ValueError: a side of more than 65,500 pixels.
    """
    kind = "gray" if pixels_HWC.shape[2] == 1 else "rgb"
    sampling = "gray" if kind == "gray" else "420"
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels_HWC), quality, kind, sampling)
    return encoded
