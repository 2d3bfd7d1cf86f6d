"""How long the search for near copies takes, and that it misses none."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from vitcore.data.audit import hamming

MILLION = 1_000_000
PLANTED = 5_000


def planted(radius: int) -> tuple[np.ndarray, np.ndarray]:
    """A million hashes each; the first 5,000 of the one are within the radius of the same of the other."""
    rng = np.random.default_rng(radius)
    left, right = rng.integers(0, 2**64, (2, MILLION), dtype=np.uint64)
    flips = [sum(1 << int(bit) for bit in rng.choice(64, number % (radius + 1), False)) for number in range(PLANTED)]
    right[:PLANTED] = left[:PLANTED] ^ np.array(flips, np.uint64)
    return left, right


@pytest.mark.parametrize(("radius", "most_s"), [(2, 20), (4, 40), (6, 150)])
def test_a_million_hashes_against_a_million(radius: int, most_s: float, report: Callable[[str], None]) -> None:
    left, right = planted(radius)
    began = time.perf_counter()
    pairs = list(hamming.between(left, right, radius))
    seconds = time.perf_counter() - began
    rows = np.concatenate([part.left for part in pairs])
    others = np.concatenate([part.right for part in pairs])
    found = rows[rows == others]
    assert np.array_equal(np.sort(found[found < PLANTED]), np.arange(PLANTED))
    report(f"audit: 10^6 × 10^6 hashes within {radius} bits: {seconds:.1f} s, {len(rows) - PLANTED} by chance")
    assert seconds < most_s


def test_copies_within_a_million_hashes(report: Callable[[str], None]) -> None:
    left, right = planted(4)
    hashes = np.unique(np.concatenate([left[: MILLION // 2], right[: MILLION // 2]]))
    began = time.perf_counter()
    found = sum(len(part.left) for part in hamming.within(hashes, 4))
    seconds = time.perf_counter() - began
    assert found >= PLANTED - PLANTED // 5  # a fifth of the planted ones are equal, and collapsed
    report(f"audit: all pairs of 10^6 hashes within 4 bits: {seconds:.1f} s")
    assert seconds < 40
