"""Which windows a reader should expect, told before they are read: of a lane of the training order, or of a range."""

from __future__ import annotations

import itertools

import numpy as np

from vitcore.data.loading.order import LaneOrder
from vitcore.data.reading.expected import Span
from vitcore.data.reading.reader import Reader

_STRETCH = 256  # samples of a range that are expected together
_RANGES = -1  # the lane of ranges: those of an order count from 0


class LookAhead:
    """Keeps a reader expecting the window that each lane is in, and the next one. Safe to share between threads.

    Costs the same wherever a lane is first met, so a resumed run starts like a new one.

    Args:
        order: what the lanes show when.
        reader: of the same split.
        uses: how often each sample is read.
        stop: sample of every lane, counted over its epochs, before which the run ends; nothing from there on is
            fetched. None: it does not end.
    """

    def __init__(self, order: LaneOrder, reader: Reader, *, uses: int = 1, stop: int | None = None) -> None:
        self._order, self._reader, self._uses, self._stop = order, reader, uses, stop
        self._recent: dict[int, tuple[Span, ...]] = {}  # of each lane: threads are not all equally far

    def advance(self, lane: int, sample: int) -> Span:
        """Say that a lane is about to read a sample, counted over all its epochs; the span to read it with."""
        span = self._order.span(lane, sample)
        recent = self._recent.get(lane, ())
        if span not in recent:
            self._expect(span)
            self._expect(self._order.next_span(span))
            self._recent[lane] = (*recent[-3:], span)  # only now may another thread rely on it
        return span

    def _expect(self, span: Span) -> None:
        turns = self._order.turns(span)
        if self._stop is None or turns.stop <= self._stop:
            self._reader.expect(span, self._order.window_rows(*span), self._uses)
        elif turns.start < self._stop:
            self._reader.expect(span, self._order.run(span[0], turns.start, self._stop)[1], self._uses)


class RangeAhead:
    """Keeps a reader expecting the stretch of a contiguous range that is being read, and the next ones.

    Every instance is a reading of its own: make one a pass.

    Args:
        reader: of the split.
        start: first row.
        stop: first row not to read.
        uses: how often each sample is read.
        depth: stretches of 256 samples expected beyond the present one.
    """

    _passes = itertools.count()  # later ones push what earlier ones left half-way out of the cache

    def __init__(self, reader: Reader, start: int, stop: int, *, uses: int = 1, depth: int = 2) -> None:
        self._reader, self._uses, self._depth = reader, uses, depth
        self._start, self._stop = start, stop
        self._number = next(self._passes)
        self._expected = 0

    def advance(self, sample: int) -> Span:
        """Say that a row is about to be read; the span to read it with."""
        stretch = (sample - self._start) // _STRETCH
        for number in range(self._expected, stretch + self._depth + 1):  # by two threads: the reader does not mind
            first = self._start + number * _STRETCH
            rows = np.arange(first, min(first + _STRETCH, self._stop), dtype=np.int64)
            if len(rows):
                self._reader.expect((_RANGES, self._number, number), rows, self._uses)
            self._expected = number + 1  # only now may another thread rely on it
        return _RANGES, self._number, stretch
