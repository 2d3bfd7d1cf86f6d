"""What is counted over the pixels of a stored photograph: a perceptual hash and the moments of its channels.

All of it in whole numbers, so that a photograph has the same measures whoever takes them, on whatever processor.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_ROWS, _COLUMNS = 8, 9  # of the grid that is hashed: 8 differences a row
_LUMA = {1: [65536], 3: [19595, 38470, 7471]}  # by channels: ITU-R BT.601, in 65536ths
_SLAB = 1 << 18  # values widened to 32 bits at once: they stay in the processor's cache


class Measures(NamedTuple):
    """Of one photograph."""

    phash: int
    """64-bit difference hash: bit set where a cell of an 8 by 9 grid is brighter than its right neighbour.

    Cells are equal parts of the photograph, their edges inside a pixel if need be: it survives resizing and
    recompression.
    """
    sums: tuple[int, int, int]
    """Sum of each channel's 8-bit values (RGB; of a grey photograph three times the same)."""
    squares: tuple[int, int, int]
    """Sum of their squares."""


def measure(pixels_HWC: NDArray[np.uint8]) -> Measures:
    """Measures of 8-bit pixels [H, W, 3] or, grey, [H, W, 1]."""
    height, width, channels = pixels_HWC.shape
    rows = pixels_HWC.reshape(height, width * channels)
    edges = [band * height // _ROWS for band in range(_ROWS + 1)]
    bands, squares = _columns(rows, edges)
    boxes = _ROWS * bands
    if height % _ROWS:  # a box ends inside a row, which counts in part for both its neighbours
        shares = np.arange(1, _ROWS) * height % _ROWS
        cut = rows[edges[1:-1]] * shares[:, None]
        boxes[:-1] += cut
        boxes[1:] -= cut
    # Products of whole numbers below 2^53 are exact in floating point, in whichever order they are added.
    cells = boxes.astype(np.float64) @ _cell_weights(width, channels)
    levels = np.rint(cells / (height * width * 65536))  # what looks equally bright is, whatever its noise
    return Measures(
        phash=int.from_bytes(np.packbits(levels[:, :-1] > levels[:, 1:]).tobytes(), "big"),
        sums=_rgb(bands.sum(axis=0), channels),
        squares=_rgb(squares, channels),
    )


def _columns(rows: NDArray[np.uint8], edges: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sum of every column from one edge to the next, [8, W × C], and sum of all its squares, [W × C]."""
    bands = np.zeros((_ROWS, rows.shape[1]), np.int64)
    squares = np.zeros(rows.shape[1], np.int64)
    wide = np.uint32 if len(rows) <= 1 << 16 else np.uint64  # holds the squares of as many rows
    at_once = min(_ROWS, max(1, _ROWS * _SLAB // rows.size))
    for first in range(0, _ROWS, at_once):
        last = min(_ROWS, first + at_once)
        slab: NDArray[Any] = rows[edges[first] : edges[last]].astype(wide)
        for band in range(first, last):
            part = slab[edges[band] - edges[first] : edges[band + 1] - edges[first]]
            np.add.reduce(part, axis=0, dtype=wide, out=bands[band])
        squares += np.einsum("rc,rc->c", slab, slab).astype(np.int64)
    return bands, squares


@lru_cache(maxsize=64)
def _cell_weights(width: int, channels: int) -> NDArray[np.float64]:
    """[W × C, 9]: the part of each column in each cell, in ninths of a pixel, times the channel's part in luma."""
    left = _COLUMNS * np.arange(width)[:, None]
    ends = width * np.arange(_COLUMNS + 1)
    shares = np.minimum(left + _COLUMNS, ends[1:]) - np.maximum(left, ends[:-1])
    weights = shares.clip(0)[:, None, :] * np.array(_LUMA[channels])[:, None]
    flat: NDArray[np.float64] = weights.reshape(width * channels, _COLUMNS).astype(np.float64)
    return flat


def _rgb(columns: NDArray[np.int64], channels: int) -> tuple[int, int, int]:
    totals: list[int] = columns.reshape(-1, channels).sum(axis=0).tolist()
    red, green, blue = totals if channels == 3 else totals * 3
    return red, green, blue
