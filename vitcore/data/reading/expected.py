"""What the lanes of a reader are about to read: windows of samples, cut into blocks, dropped once they are past."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence

from vitcore.data.reading.blocks import Block, BlockCache

Span = tuple[int, int, int]
"""A window: lane, epoch, number of the window in the lane's epoch."""


class _Window:
    """The blocks of a window, cut when they are first asked for: that may have to read an index."""

    def __init__(self, cut: Callable[[], Sequence[Block]]) -> None:
        self._cut = cut
        self._blocks: Sequence[Block] | None = None
        self._firsts: list[int] = []
        self._lock = threading.Lock()

    def blocks(self) -> Sequence[Block]:
        with self._lock:
            if self._blocks is None:
                self._blocks = self._cut()
                self._firsts = [block.first for block in self._blocks]
            return self._blocks

    def find(self, sample: int) -> Block | None:
        blocks = self.blocks()
        place = bisect_right(self._firsts, sample) - 1
        return blocks[place] if place >= 0 else None

    def drop(self) -> Sequence[Block]:
        """Its blocks so far; there are no others from now on."""
        with self._lock:
            blocks, self._blocks, self._firsts = self._blocks or (), (), []
            return blocks


class _Lane:
    def __init__(self) -> None:
        self.windows: dict[tuple[int, int], _Window] = {}
        self.latest: tuple[int, int] | None = None  # read so far
        self.oldest: tuple[int, int] | None = None  # not dropped: threads are not all equally far


class Expected:
    """Windows by span. Safe to share between threads.

    A lane moves forward. When it reads a window for the first time, those before the one it read last are dropped,
    whether they were read to the end or not: the samples that a resumed run skips are never asked for. What a thread
    still wants of them, two windows behind, is read sample by sample.

    Args:
        cache: where the blocks are fetched to.
    """

    def __init__(self, cache: BlockCache) -> None:
        self._cache = cache
        self._lanes: dict[int, _Lane] = {}
        self._closed = False
        self._lock = threading.Lock()

    def add(self, span: Span, cut: Callable[[], Sequence[Block]]) -> None:
        """Expect the blocks that `cut` gives; again, or for a window that was dropped, nothing happens."""
        number = span[1:]
        with self._lock:
            if self._closed:
                return
            lane = self._lanes.setdefault(span[0], _Lane())
            if number in lane.windows or (lane.oldest is not None and number < lane.oldest):
                return
            urgent = not lane.windows
            window = lane.windows[number] = _Window(cut)
        self._cache.expect(window.blocks, urgent=urgent)

    def find(self, span: Span, sample: int) -> Block | None:
        """The block that a sample of a window should be in; None where none was expected."""
        number = span[1:]
        with self._lock:
            lane = self._lanes.get(span[0])
            if lane is None:
                return None
            past = self._move(lane, number)
            window = lane.windows.get(number)
        for old in past:
            self._cache.drop(old.drop())
        return window.find(sample) if window is not None else None

    def close(self) -> None:
        """Drop everything, and expect nothing more."""
        with self._lock:
            self._closed = True
            windows = [window for lane in self._lanes.values() for window in lane.windows.values()]
            self._lanes.clear()
        for window in windows:
            self._cache.drop(window.drop())

    def _move(self, lane: _Lane, number: tuple[int, int]) -> list[_Window]:
        """Note that the lane reads this window; the windows it is past."""
        if lane.latest is not None and number <= lane.latest:
            return []
        lane.oldest, lane.latest = lane.latest, number
        past = [old for old in lane.windows if lane.oldest is not None and old < lane.oldest]
        return [lane.windows.pop(old) for old in past]
