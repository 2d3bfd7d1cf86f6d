"""What is counted over the pixels of a stored photograph: a perceptual hash and the moments of its channels.

All of it in whole numbers, so that a photograph has the same measures whoever takes them, on whatever processor. Where
they are kept in floating point they stay below 2^53: then products and sums are exact, in whichever order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_ROWS, _COLUMNS = 8, 9  # of the grid that is hashed: 8 differences a row
_LUMA = {1: [65536], 3: [19595, 38470, 7471]}  # by channels: ITU-R BT.601, in 65536ths
_FEW = 1 << 14  # values up to which one matrix product is quicker than a sum for each band
_SLAB = 1 << 18  # values widened to 32 bits at once: they stay in the processor's cache
_PIECE = 2048  # columns of a matrix product that is too small for BLAS to start threads

Counts = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
"""Of the columns: sums over 8 equal boxes, in eighths of a row, [8, W × C]; sums and sums of squares, [W × C]."""


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
    boxes, sums, squares = _count_few(rows) if rows.size <= _FEW else _count_many(rows)
    cells = np.zeros((_ROWS, _COLUMNS))
    weights = _cell_weights(width, channels)
    for first in range(0, len(weights), _PIECE):
        cells += boxes[:, first : first + _PIECE] @ weights[first : first + _PIECE]
    levels = np.rint(cells / (height * width * 65536))  # what looks equally bright is, whatever its noise
    bits = np.packbits(levels[:, :-1] > levels[:, 1:])
    return Measures(int.from_bytes(bits.tobytes(), "big"), _rgb(sums, channels), _rgb(squares, channels))


def _count_few(rows: NDArray[np.uint8]) -> Counts:
    wide = rows.astype(np.float64)
    sums = _box_weights(len(rows)) @ wide
    return sums[:_ROWS], sums[_ROWS], np.einsum("rc,rc->c", wide, wide)


def _count_many(rows: NDArray[np.uint8]) -> Counts:
    height, columns = rows.shape
    edges = [box * height // _ROWS for box in range(_ROWS + 1)]
    bands = np.zeros((_ROWS, columns), np.int64)
    squares = np.zeros(columns, np.int64)
    wide = np.uint32 if height <= 1 << 16 else np.uint64  # holds the squares of as many rows
    at_once = min(_ROWS, max(1, _ROWS * _SLAB // rows.size))
    for first in range(0, _ROWS, at_once):
        last = min(_ROWS, first + at_once)
        slab: NDArray[Any] = rows[edges[first] : edges[last]].astype(wide)
        for band in range(first, last):
            part = slab[edges[band] - edges[first] : edges[band + 1] - edges[first]]
            np.add.reduce(part, axis=0, dtype=wide, out=bands[band])
        squares += np.einsum("rc,rc->c", slab, slab).astype(np.int64)
    boxes = _ROWS * bands
    if height % _ROWS:  # a box ends inside a row, which counts in part for both its neighbours
        shares = np.arange(1, _ROWS) * height % _ROWS
        cut = rows[edges[1:-1]] * shares[:, None]
        boxes[:-1] += cut
        boxes[1:] -= cut
    return boxes.astype(np.float64), bands.sum(axis=0), squares


@lru_cache(maxsize=64)
def _box_weights(height: int) -> NDArray[np.float64]:
    """[9, H]: the part of each row in each of 8 boxes, in eighths; then ones, for the sum of all."""
    return np.concatenate([_shares(height, _ROWS).T, np.ones((1, height))])


@lru_cache(maxsize=64)
def _cell_weights(width: int, channels: int) -> NDArray[np.float64]:
    """[W × C, 9]: the part of each column in each cell, in ninths of a pixel, times the channel's part in luma."""
    weights = _shares(width, _COLUMNS)[:, None, :] * np.array(_LUMA[channels])[:, None]
    flat: NDArray[np.float64] = weights.reshape(width * channels, _COLUMNS)
    return flat


def _shares(length: int, parts: int) -> NDArray[np.float64]:
    """[length, parts]: how much of each pixel lies in each of equal parts of the length, times the number of parts."""
    start, edges = parts * np.arange(length)[:, None], length * np.arange(parts + 1)
    shares: NDArray[np.int64] = np.minimum(start + parts, edges[1:]) - np.maximum(start, edges[:-1])
    inside: NDArray[np.float64] = shares.clip(0).astype(np.float64)
    return inside


def _rgb(columns: NDArray[Any], channels: int) -> tuple[int, int, int]:
    totals = columns.reshape(-1, channels).sum(axis=0).tolist()
    red, green, blue = totals if channels == 3 else totals * 3
    return int(red), int(green), int(blue)
