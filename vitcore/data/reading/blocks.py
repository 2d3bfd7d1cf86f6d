"""Stretches of remote shards, fetched ahead of their use by a few threads into one bounded cache on a local disk.

A block is a byte range of one shard that will be read sample by sample. Blocks are fetched in the order in which they
were asked for, those that are needed at once before those that are merely next. A thread that needs a block which
nobody has begun fetches it itself; where the cache has no room for it, the block is given up and its samples are read
one by one. So nobody who reads ever waits for room, and no byte is fetched twice.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from vitcore import storage
from vitcore.data.reading.arena import PAGE, Arena

BLOCK = 1 << 21
"""Most bytes of a block, unless one sample alone has more: large enough that a request's latency hardly counts."""
_GAP = 1 << 16  # bytes between two samples that are cheaper to fetch than another request

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """Where and how large the cache of a process is."""

    folder: Path | None = None
    """On a local disk; None: the system's folder for temporary files."""
    limit: int = 4 << 30
    """Bytes on that disk at most. Room for two windows of every lane of the rank avoids reading sample by sample."""
    threads: int = 8
    """Range reads under way at once."""


@dataclass(frozen=True, slots=True)
class ReadStats:
    """What reading remote shards has cost so far."""

    fetched_blocks: int = 0
    """Blocks that arrived."""
    fetched_bytes: int = 0
    """Bytes that arrived, of blocks and of single samples."""
    direct_reads: int = 0
    """Samples that were read by a request of their own."""
    wait_s: float = 0.0
    """Seconds that readers spent on blocks which were not there yet, summed over their threads."""


class Traffic:
    """Counts for `ReadStats`, from several threads."""

    def __init__(self) -> None:
        self.stats = ReadStats()
        """So far."""
        self._lock = threading.Lock()

    def add(self, *, blocks: int = 0, bytes_: int = 0, direct: int = 0, wait_s: float = 0.0) -> None:
        """Count something."""
        with self._lock:
            was = self.stats
            self.stats = ReadStats(
                was.fetched_blocks + blocks,
                was.fetched_bytes + bytes_,
                was.direct_reads + direct,
                was.wait_s + wait_s,
            )


class _State(Enum):
    WAITING = "nobody has begun it"
    FETCHING = "its pages are taken, its bytes on their way"
    READY = "in the cache"
    GONE = "read to the end, dropped, given up or not to be had"


@dataclass(slots=True, eq=False)
class Block:
    """A byte range of one shard."""

    url: str
    start: int
    stop: int
    first: int
    """Row of its first sample in the split's index."""
    uses: int
    """Reads to come, after which it is dropped."""
    traffic: Traffic
    state: _State = _State.WAITING
    pages: list[int] = field(default_factory=list)
    arrived: int = 0
    """Bytes that the store had of it."""
    readers: int = 0
    """Threads that are copying from it."""


def stretches(offsets: Sequence[int], sizes: Sequence[int], most: int = BLOCK) -> Iterator[tuple[int, int]]:
    """Cut samples of one shard, in tar order, into runs of at most `most` bytes without large gaps; at least one each.

    Yields:
        First sample of a run, and the one after its last.
    """
    first = 0
    for place in range(1, len(offsets)):
        gap = offsets[place] - offsets[place - 1] - sizes[place - 1]
        if not 0 <= gap <= _GAP or offsets[place] + sizes[place] - offsets[first] > most:
            yield first, place
            first = place
    if len(offsets):
        yield first, len(offsets)


_Job = tuple[int, int, int, Block | Callable[[], Sequence[Block]]]
"""Not urgent, number of the request, place in it, and the work: a block, or what cuts a request into blocks."""


class BlockCache:
    """The cache of a process: any number of readers may share it. Costs nothing until a block is expected.

    Args:
        config: where, how large, and how many threads.
    """

    def __init__(self, config: CacheConfig = CacheConfig()) -> None:
        self._config = config
        self._arena: Arena | None = None
        self._changed = threading.Condition()
        self._queue: list[_Job] = []
        self._numbers = itertools.count()
        self._closed = False
        self._said = False

    def expect(self, cut: Callable[[], Sequence[Block]], *, urgent: bool) -> None:
        """Fetch blocks ahead, in their order; `cut` says which, in a thread of the cache.

        Raises:
            WorkError: there is no cache in the configured folder.
        """
        with self._changed:
            if self._closed:
                return
            if self._arena is None:
                self._start()
            heapq.heappush(self._queue, (int(not urgent), next(self._numbers), -1, cut))
            self._changed.notify_all()

    def read(self, block: Block, start: int, size: int) -> bytes | None:
        """Bytes `start` to `start + size` of a block's shard; None where the cache does not have them."""
        if block.state is not _State.READY:
            began = time.perf_counter()
            self._obtain(block)
            block.traffic.add(wait_s=time.perf_counter() - began)
        with self._changed:
            arena, at = self._arena, start - block.start
            if block.state is not _State.READY or arena is None:
                return None
            block.readers += 1
        try:
            return arena.read(block.pages, at, size) if 0 <= at <= at + size <= block.arrived else None
        except OSError:  # a failing disk: the store still has the bytes
            return None
        finally:
            with self._changed:
                block.readers -= 1
                block.uses -= 1
                self._release_if_done(block)

    def drop(self, blocks: Sequence[Block]) -> None:
        """Forget blocks that will not be read any more; a read that is under way still ends well."""
        with self._changed:
            for block in blocks:
                block.uses = 0
                if block.state is _State.WAITING:
                    block.state = _State.GONE
                self._release_if_done(block)

    def close(self) -> None:
        """Stop fetching, without waiting for requests that are under way, and forget everything."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._arena = None  # the file goes with its last user
            self._changed.notify_all()

    def _start(self) -> None:
        self._arena = Arena(self._config.folder, self._config.limit)
        for number in range(self._config.threads):
            threading.Thread(target=self._serve, name=f"blocks-{number}", daemon=True).start()

    def _serve(self) -> None:
        while (job := self._next()) is not None:
            *order, work = job
            if isinstance(work, Block):
                self._fetch(work)
                continue
            try:
                blocks = work()
            except Exception:  # noqa: S112  (whoever reads these samples meets the same error, and raises it)
                continue
            with self._changed:
                for place, block in enumerate(blocks):
                    heapq.heappush(self._queue, (order[0], order[1], place, block))
                self._changed.notify_all()

    def _next(self) -> _Job | None:
        """The first job, a block with its pages taken; waits until there is one and room for it. None: closed."""
        with self._changed:
            while not self._closed:
                work = self._queue[0][-1] if self._queue else None
                if isinstance(work, Block):
                    if self._claim(work):
                        return heapq.heappop(self._queue)
                    if work.state is not _State.WAITING:  # a reader was faster, or nobody wants it any more
                        heapq.heappop(self._queue)
                        continue
                elif work is not None:
                    return heapq.heappop(self._queue)
                self._changed.wait()
            return None

    def _obtain(self, block: Block) -> None:
        """For a reader: fetch the block, or wait for who does; without room for it, give it up."""
        with self._changed:
            mine = self._claim(block)
            if not mine and block.state is _State.WAITING:
                block.state = _State.GONE  # fetched later, what is read directly now would be fetched twice
            while not mine and block.state is _State.FETCHING and not self._closed:
                self._changed.wait()
        if mine:
            self._fetch(block)

    def _claim(self, block: Block) -> bool:
        if block.state is not _State.WAITING or self._arena is None:
            return False
        size = block.stop - block.start
        pages = self._arena.take(size)
        if pages is not None:
            block.pages, block.state = pages, _State.FETCHING
        elif size > self._arena.pages * PAGE:  # it would be waited for in vain
            block.state = _State.GONE
        return pages is not None

    def _fetch(self, block: Block) -> None:
        """Fetch a claimed block. Should that fail, its samples are read one by one, and the error shows there."""
        arena, kept = self._arena, False
        try:
            data = storage.read_range(block.url, block.start, block.stop)
            block.traffic.add(blocks=1, bytes_=len(data))
            if arena is not None and len(data) <= block.stop - block.start:
                kept = self._put_aside(arena, block, data)
        except Exception as error:
            _log.debug("%s could not be fetched ahead: %s", block.url, error)
        finally:
            with self._changed:
                block.state = _State.READY if kept else _State.GONE
                if not kept and arena is not None:
                    arena.give(block.pages)
                self._release_if_done(block)
                self._changed.notify_all()

    def _put_aside(self, arena: Arena, block: Block, data: bytes) -> bool:
        try:
            arena.write(block.pages, data)
        except OSError as error:
            with self._changed:
                arena.retire(block.pages)
                block.pages = []
                said, self._said = self._said, True
            if not said:
                _log.warning("the cache of fetched blocks grows no further (%s): samples are read one by one", error)
            return False
        block.arrived = len(data)
        return True

    def _release_if_done(self, block: Block) -> None:
        if block.uses <= 0 and not block.readers and block.state is _State.READY:
            block.state = _State.GONE
            if self._arena is not None:
                self._arena.give(block.pages)
            self._changed.notify_all()
