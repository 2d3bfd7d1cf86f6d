"""All pairs of 64-bit hashes within a Hamming radius, without comparing every pair.

Cut the 64 bits into k blocks. Two hashes that differ in at most r bits differ in at most r blocks, so they agree in all
bits of k − r others. For every choice of k − r blocks the hashes are sorted by the bits of these blocks, and only those
that agree there are compared (Manku, Jain and Das Sarma, "Detecting near-duplicates for web crawling", WWW 2007). The
answer is exact at every radius; k is chosen by the number of hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Rows = NDArray[np.int64]
Progress = Callable[[int, int], None]
"""Told how many of how many choices of blocks are done."""

BITS = 64
MAX_RADIUS = 8
_SLICE = 1 << 18  # hashes whose partners are looked for at once: bounds memory beside the sorted hashes
_SORTING, _COMPARING = 130.0, 4.0  # nanoseconds a hash and a comparison take, about
_CORRELATION = 0.8  # b bits of a photograph's hash tell as much apart as this many × b random ones (see `_blocks`)
_SPREAD = sorted(range(BITS), key=lambda bit: ((3 * (bit // 8) + bit) % 8, bit))
"""Bits of an 8 × 8 grid by diagonals: neighbours in a photograph are alike, and a block should hold none."""


class Pairs(NamedTuple):
    """Pairs of hashes and how far apart they are."""

    left: Rows
    right: Rows
    distance: NDArray[np.uint8]

    def take(self, which: NDArray[np.bool_]) -> Pairs:
        """Some of them."""
        return Pairs(self.left[which], self.right[which], self.distance[which])


def within(hashes: Hashes, radius: int, progress: Progress | None = None) -> Iterator[Pairs]:
    """Every pair of distinct positions of `hashes` at most `radius` bits apart, once, in parts of bounded size.

    Args:
        hashes: [N] distinct; equal ones are to be collapsed by the caller, who alone knows what they mean.
        radius: from 0 to 8.
        progress: told of the choices of blocks.
    """
    return _search(hashes, None, radius, progress)


def between(left: Hashes, right: Hashes, radius: int, progress: Progress | None = None) -> Iterator[Pairs]:
    """Every pair of a position of `left` and one of `right` at most `radius` bits apart, once; see `within`."""
    return _search(left, right, radius, progress)


def _search(left: Hashes, right: Hashes | None, radius: int, progress: Progress | None) -> Iterator[Pairs]:
    if not 0 <= radius <= MAX_RADIUS:
        raise ValueError(f"the radius must be from 0 to {MAX_RADIUS} bits, not {radius}")
    masks = _blocks(_block_count(radius, len(left), len(left if right is None else right)))
    choices = list(combinations(range(len(masks)), len(masks) - radius))
    for number, chosen in enumerate(choices, 1):
        earlier = np.array([masks[block] for block in range(chosen[-1]) if block not in chosen], np.uint64)
        for pairs in _agreeing(left, right, np.bitwise_or.reduce(masks[list(chosen)]), radius):
            # A pair that agrees in more blocks than needed is met again: it counts at the first choice alone.
            differing = left[pairs.left] ^ (left if right is None else right)[pairs.right]
            first = ((differing[:, None] & earlier) != 0).all(axis=1)
            if first.any():
                yield pairs.take(first)
        if progress:
            progress(number, len(choices))


def _block_count(radius: int, left: int, right: int) -> int:
    """The number of blocks that is expected to take least time: more blocks mean more sorts and fewer comparisons."""

    def cost(blocks: int) -> float:
        agreeing = left * right / 2 ** (_CORRELATION * BITS * (blocks - radius) / blocks)
        return comb(blocks, radius) * (_SORTING * (left + right) + _COMPARING * agreeing)

    return min(range(radius + 1, radius + 5), key=cost)


def _blocks(count: int) -> Hashes:
    """Masks of `count` blocks of about equal size.

    On CIFAR-10 blocks along diagonals agree by chance 4 times less often than blocks of rows, 14 times less often than
    blocks of columns.
    """
    edges = [BITS * block // count for block in range(count + 1)]
    masks = [sum(1 << bit for bit in _SPREAD[start:stop]) for start, stop in pairwise(edges)]
    return np.array(masks, np.uint64)


def _agreeing(left: Hashes, right: Hashes | None, mask: np.uint64, radius: int) -> Iterator[Pairs]:
    """Pairs within the radius among those that agree in the bits of the mask."""
    order = np.argsort(left & mask)
    values, keys = left[order], (left & mask)[order]
    if right is None:
        other_order, other_values, other_keys = order, values, keys
    else:
        other_order = np.argsort(right & mask)
        other_values, other_keys = right[other_order], (right & mask)[other_order]
    for start in range(0, len(values), _SLICE):
        rows = np.arange(start, min(start + _SLICE, len(values)))
        stop = np.searchsorted(other_keys, keys[rows], side="right")
        at = rows + 1 if right is None else np.searchsorted(other_keys, keys[rows], side="left")
        while True:  # each hash is compared with its next partner until none has one left
            alive = at < stop
            if not alive.all():
                rows, at, stop = rows[alive], at[alive], stop[alive]
            if not len(rows):
                break
            distance = np.bitwise_count(values[rows] ^ other_values[at])
            near = np.flatnonzero(distance <= radius)
            if len(near):
                yield Pairs(order[rows[near]], other_order[at[near]], distance[near])
            at += 1
