"""The stored bytes of a sample, by its row in the index; no tar is ever walked.

Local shards are read at the sample's offset through a bounded number of open files. Positional reads rather than memory
maps: they are as fast from the page cache, release the GIL while a disk is slow, and a tar that was cut short gives a
short read instead of a bus error. Remote shards arrive in blocks, ahead of use (`blocks`, `ahead`), or sample by sample
where none was expected; what arrives is compared with the content hash of the index.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from vitcore import storage
from vitcore.data.dataset.index import Index, ShardRows
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.loading.order import Ints
from vitcore.data.reading.arena import Descriptor
from vitcore.data.reading.blocks import BLOCK, Block, BlockCache, CacheConfig, ReadStats, Traffic, stretches
from vitcore.data.reading.decode import BadSampleError
from vitcore.data.reading.expected import Expected, Span
from vitcore.errors import WorkError

_OPEN_FILES = 256
_SCAN = 1 << 21  # bytes that a scan reads at once: what fits in a core's second cache is fastest
_SCAN_AHEAD = 4  # reads of a remote shard that a scan has under way


class _File(Descriptor):
    """A local shard."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            super().__init__(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:
            raise BadSampleError(f"its shard {path} is missing") from None
        except OSError as error:
            raise WorkError(f"{path} could not be read: {error}") from error

    def read(self, start: int, size: int) -> bytes:
        try:
            return os.pread(self.number, size, start)
        except OSError as error:
            raise WorkError(f"{self._path} could not be read: {error}") from error


class _Place(NamedTuple):
    """Where a shard's bytes come from."""

    url: str
    bytes: int
    file: _File | None  # None: from the URL


class Reader:
    """Reads samples of one split; safe to share between threads. Close it, or leave its `with`.

    Args:
        dataset: an opened version.
        split: its name.
        index: the split's index, where the caller has it already.
        open_files: most local shards kept open at a time.
        cache: limits of the reader's own cache of remote blocks, or a cache that several readers share, whose owner
            closes it.
        verify: whose bytes are compared with the content hash: those of remote shards, or of local ones too (half a
            second a gigabyte and core).
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        index: Index | None = None,
        open_files: int = _OPEN_FILES,
        cache: CacheConfig | BlockCache = CacheConfig(),  # noqa: B008  (frozen)
        verify: Literal["remote", "all"] = "remote",
    ) -> None:
        self.index = dataset.index(split) if index is None else index
        self._dataset, self._shards = dataset, dataset.shard_list(split)
        self._verify = verify == "all"
        self._open_files = open_files
        self._places: dict[int, _Place] = {}
        self._lock = threading.Lock()
        self._cache = BlockCache(cache) if isinstance(cache, CacheConfig) else cache
        self._owns_cache = isinstance(cache, CacheConfig)
        self._expected = Expected(self._cache)
        self._traffic = Traffic()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def stats(self) -> ReadStats:
        """What remote reading has cost so far."""
        return self._traffic.stats

    def expect(self, span: Span, rows: Ints, uses: int = 1) -> None:
        """Fetch the bytes of a window's remote samples ahead; does not wait, and again it does nothing.

        Args:
            span: lane, epoch, number of the window. A lane that reads a window drops what it expected before the
                window it read last.
            rows: its samples, in any order.
            uses: how often each of them will be read with this span.

        Raises:
            WorkError: there is no cache in the configured folder.
        """
        if any(self._is_remote(shard) for shard, _ in self._by_shard(rows)):
            self._expected.add(span, partial(self._cut, rows, uses))

    def read(self, sample: int, span: Span | None = None) -> bytes:
        """The stored image of the sample at row `sample`, out of the blocks that were expected for `span`.

        Raises:
            BadSampleError: its shard is gone or cut short, or the bytes are not those that were indexed.
            WorkError: a disk fails or a store does not answer.
        """
        shard = self.index.find(sample)
        rows = self.index.shard(shard)
        row = sample - rows.first
        start, size = rows.offsets.item(row), rows.sizes.item(row)
        place = self._places.get(shard) or self._open(shard)
        if not 0 <= start <= start + size <= place.bytes:
            raise BadSampleError(f"its shard {place.url} is shorter than the index says")
        if place.file is None:
            return self._read_remote(place.url, sample, span, start, size, rows.hashes[row].tobytes())
        data = place.file.read(start, size)
        if len(data) != size:
            raise BadSampleError(f"its shard {place.url} ends before the sample does")
        if self._verify and hashlib.sha256(data).digest() != rows.hashes[row].tobytes():
            raise BadSampleError(f"its bytes in {place.url} are not those that were indexed")
        return data

    def scan(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, memoryview]]:
        """Samples `start` to `stop` in index order, read in large pieces and not copied.

        Yields:
            Row and bytes; no bytes where `read` would raise `BadSampleError`.

        Raises:
            WorkError: a disk fails or a store does not answer.
        """
        stop = len(self.index) if stop is None else min(stop, len(self.index))
        with ThreadPoolExecutor(_SCAN_AHEAD) as pool:
            while start < stop:
                shard = self.index.find(start)
                rows = self.index.shard(shard)
                end = min(stop, rows.first + len(rows.sizes))
                yield from self._scan_shard(shard, rows, start - rows.first, end - rows.first, pool)
                start = end

    def close(self) -> None:
        """Close the files and stop fetching; a read that is under way still ends well."""
        self._expected.close()
        if self._owns_cache:
            self._cache.close()
        with self._lock:
            self._places.clear()

    def _scan_shard(
        self, shard: int, rows: ShardRows, first: int, stop: int, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[int, memoryview]]:
        offsets, sizes = rows.offsets.tolist(), rows.sizes.tolist()
        verify = self._verify or self._is_remote(shard)
        ranges = list(self._ranges(shard, rows, np.arange(first, stop), _SCAN))
        pieces = self._pieces(shard, [(begin, end) for *_, begin, end in ranges], pool)
        for (begin, end, at, _), data in zip(ranges, pieces, strict=True):
            piece = memoryview(data)
            for row in range(first + begin, first + end):
                sample = piece[offsets[row] - at :][: sizes[row]]
                if verify and hashlib.sha256(sample).digest() != rows.hashes[row].tobytes():
                    sample = piece[:0]
                yield rows.first + row, sample if len(sample) == sizes[row] else piece[:0]

    def _pieces(self, shard: int, ranges: Sequence[tuple[int, int]], pool: ThreadPoolExecutor) -> Iterator[bytes]:
        """The bytes of each range, short where the shard is; of a remote shard, some are fetched ahead."""
        try:
            place = self._places.get(shard) or self._open(shard)
        except BadSampleError:
            yield from (b"" for _ in ranges)
            return
        if place.file is not None:
            yield from (place.file.read(begin, end - begin) for begin, end in ranges)
            return
        ahead: deque[Future[bytes]] = deque()
        for begin, end in ranges:
            ahead.append(pool.submit(self._request_or_nothing, place.url, begin, end))
            if len(ahead) >= _SCAN_AHEAD:
                yield ahead.popleft().result()
        yield from (piece.result() for piece in ahead)

    def _request_or_nothing(self, url: str, start: int, stop: int) -> bytes:
        try:
            return self._request(url, start, stop)
        except BadSampleError:
            return b""

    def _read_remote(self, url: str, sample: int, span: Span | None, start: int, size: int, content: bytes) -> bytes:
        block = self._expected.find(span, sample) if span is not None else None
        if block is not None and block.url == url:
            data = self._cache.read(block, start, size)
            if data is not None and hashlib.sha256(data).digest() == content:
                return data
        data = self._request(url, start, start + size)  # after a block that went wrong, this has the last word
        self._traffic.add(direct=1)
        if len(data) != size:
            raise BadSampleError(f"its shard {url} ends before the sample does")
        if hashlib.sha256(data).digest() != content:
            raise BadSampleError(f"its bytes in {url} are not those that were indexed")
        return data

    def _request(self, url: str, start: int, stop: int) -> bytes:
        """A byte range, short where the shard is; whatever else the store does is an error of the work."""
        if start == stop:
            return b""
        try:
            data = storage.read_range(url, start, stop)
        except FileNotFoundError:
            raise BadSampleError(f"its shard {url} is missing") from None
        except OSError as error:
            if _ends_before(url, stop):  # a range beyond the end is an error to some stores
                return b""
            raise WorkError(f"samples of {url} could not be fetched: {error}") from error
        self._traffic.add(bytes_=len(data))
        if len(data) > stop - start:
            raise WorkError(f"the store of {url} sends whole files where a range of bytes is asked for; use another")
        return data

    def _cut(self, rows: Ints, uses: int) -> list[Block]:
        """The remote blocks that hold these samples and no others, in index order."""
        blocks = []
        for shard, here in self._by_shard(rows):
            if not self._is_remote(shard):
                continue
            known = self.index.shard(shard)
            for first, stop, begin, end in self._ranges(shard, known, here - known.first, BLOCK):
                if begin < end:
                    block = Block(self._url(shard), begin, end, int(here[first]), (stop - first) * uses, self._traffic)
                    blocks.append(block)
        return blocks

    def _ranges(self, shard: int, rows: ShardRows, inside: Ints, most: int) -> Iterator[tuple[int, int, int, int]]:
        """Runs of these samples of a shard, and the bytes of the shard that hold them; 0, 0 where it has none such."""
        offsets, sizes = rows.offsets[inside].tolist(), rows.sizes[inside].tolist()
        for first, stop in stretches(offsets, sizes, most):
            begin, end = offsets[first], offsets[stop - 1] + sizes[stop - 1]
            fits = 0 <= begin <= end <= self._shards[shard].bytes  # an index may say anything
            yield (first, stop, begin, end) if fits else (first, stop, 0, 0)

    def _by_shard(self, rows: Ints) -> Iterator[tuple[int, Ints]]:
        """Shards that hold these samples, in their order, and the samples in each, in theirs."""
        rows, at = np.unique(rows), 0
        while at < len(rows):
            shard = self.index.find(int(rows[at]))
            end = int(np.searchsorted(rows, self.index.starts[shard + 1]))
            yield shard, rows[at:end]
            at = end

    def _url(self, shard: int) -> str:
        return self._dataset.shard_url(self._shards[shard])

    def _is_remote(self, shard: int) -> bool:
        return not storage.is_local(self._url(shard))

    def _open(self, shard: int) -> _Place:
        with self._lock:
            place = self._places.get(shard)
            if place is None:
                url = self._url(shard)
                file = _File(storage.local_path(url)) if storage.is_local(url) else None
                place = self._places[shard] = _Place(url, self._shards[shard].bytes, file)
                if len(self._places) > self._open_files:
                    del self._places[next(iter(self._places))]
            return place


def _ends_before(url: str, stop: int) -> bool:
    try:
        return storage.size(url) < stop
    except OSError:
        return False
