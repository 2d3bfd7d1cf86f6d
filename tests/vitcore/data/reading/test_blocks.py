"""The cache of remote blocks: exact whatever happens, bounded, and no byte fetched twice."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from vitcore import storage
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.reading.arena import PAGE, Arena
from vitcore.data.reading.blocks import BlockCache, CacheConfig, stretches
from vitcore.data.reading.decode import BadSampleError
from vitcore.data.reading.reader import Reader
from vitcore.errors import WorkError

SPAN = (0, 0, 0)
Range = tuple[str, int, int]


class Store:
    """Counts range reads of the memory filesystem; `before(range)` may raise, wait, or answer in its place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[Range] = []
        self.before: Callable[[Range], bytes | None] = lambda asked: None
        self._real = storage.read_range
        monkeypatch.setattr(storage, "read_range", self.read_range)

    def read_range(self, url: str, start: int, stop: int) -> bytes:
        self.asked.append((url, start, stop))
        answer = self.before((url, start, stop))
        return self._real(url, start, stop) if answer is None else answer


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    return Store(monkeypatch)


@pytest.fixture
def remote(make_dataset: Callable[..., Dataset], tmp_path: Path) -> Iterator[Dataset]:
    make_dataset(tmp_path, [30, 1, 40, 29])
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/", "/blocks", recursive=True)
    yield Dataset.open("memory://blocks")
    memory.rm("/blocks", recursive=True)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitcore.data.reading.reader.BLOCK", 5000)  # some four samples


def rows(start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop, dtype=np.int64)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def spoiled(reader: Reader, samples: range, span: tuple[int, int, int] = SPAN) -> list[int]:
    """Samples that are bad; the reader itself compares the others with their hash."""
    bad = []
    for sample in samples:
        try:
            reader.read(sample, span)
        except BadSampleError:
            bad.append(sample)
    return bad


def test_samples_are_cut_where_blocks_grow_large_and_at_gaps() -> None:
    large = 1 << 20
    assert list(stretches([0, 600, 1200], [500, 500, 500])) == [(0, 3)]
    assert list(stretches([0, 600, 1200], [500, 500, 500], most=1100)) == [(0, 2), (2, 3)]
    assert list(stretches([0, 600, large], [500, 500, 5])) == [(0, 2), (2, 3)]
    assert list(stretches([0, large], [9 * large, 5])) == [(0, 1), (1, 2)]
    assert list(stretches([700, 0], [500, 500])) == [(0, 1), (1, 2)]
    assert list(stretches([], [])) == []


def test_a_window_arrives_in_blocks_of_its_samples_and_no_others(
    remote: Dataset, store: Store, small_blocks: None
) -> None:
    with Reader(remote, "train") as reader:
        reader.expect(SPAN, rows(10, 50)[::-1])
        reader.expect(SPAN, rows(10, 50))
        assert spoiled(reader, range(49, 9, -1)) == []
        assert reader.stats.direct_reads == 0
        index = reader.index
        for url, start, stop in store.asked:
            inside = (index.shard_of == int(url[-5])) & (index.offsets >= start) & (index.offsets + index.sizes <= stop)
            assert inside.any() and stop - start <= 5000
            assert set(np.flatnonzero(inside)) <= set(range(10, 50))
        assert len(set(store.asked)) == len(store.asked) == reader.stats.fetched_blocks > 10
        assert reader.stats.fetched_bytes == sum(stop - start for _, start, stop in store.asked)


def test_a_block_is_dropped_when_each_sample_was_read_as_often_as_announced(remote: Dataset, store: Store) -> None:
    with Reader(remote, "train") as reader:
        reader.expect(SPAN, rows(0, 30), uses=2)
        assert spoiled(reader, range(30)) == spoiled(reader, range(30)) == []
        assert len(store.asked) == 1 and reader.stats.direct_reads == 0
        reader.read(3, SPAN)
        assert len(store.asked) == 2 and reader.stats.direct_reads == 1


def test_windows_a_lane_is_past_make_room(remote: Dataset, store: Store) -> None:
    with Reader(remote, "train", cache=CacheConfig(limit=3 * PAGE)) as reader:
        for number, first in enumerate((0, 31, 71)):
            reader.expect((0, 0, number), rows(first, first + 20))
            reader.read(first, (0, 0, number))  # the others were skipped
        assert list(reader._expected._lanes[0].windows) == [(0, 1), (0, 2)]
        reader.expect((0, 0, 0), rows(0, 20))  # a thread that is late
        assert list(reader._expected._lanes[0].windows) == [(0, 1), (0, 2)]
        reader.expect((1, 0, 0), rows(60, 70))  # there is room again: one page of three was given back
        reader.read(60, (1, 0, 0))
        assert reader.stats.direct_reads == 0 and reader.stats.fetched_blocks == 4


@pytest.mark.parametrize("pages", [0, 1, 3])
def test_a_cache_that_is_too_small_is_exact_and_fetches_nothing_twice(
    remote: Dataset, store: Store, small_blocks: None, tmp_path: Path, pages: int
) -> None:
    config = CacheConfig(folder=tmp_path, limit=pages * PAGE, threads=2)
    with Reader(remote, "train", cache=config) as reader:
        for lane in range(4):
            for block in range(5):
                reader.expect((lane, 0, block), rows(25 * lane + 5 * block, 25 * lane + 5 * block + 5))
        order = np.random.default_rng(0).permutation(5)
        threads = [
            threading.Thread(
                target=lambda lane=lane: [
                    reader.read(25 * lane + 5 * block + int(n), (lane, 0, block)) for block in range(5) for n in order
                ]
            )
            for lane in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        arena = reader._cache._arena
        assert arena is not None and os.fstat(arena._file.number).st_size <= pages * PAGE
        assert reader.stats.fetched_bytes <= sum(shard.bytes for shard in remote.shards("train"))
        assert reader.stats.direct_reads == 100 if pages == 0 else reader.stats.direct_reads < 100
        until(lambda: len(arena._free) + arena._unused == pages)


def test_what_is_needed_at_once_comes_before_what_is_next(remote: Dataset, store: Store) -> None:
    begun, go = threading.Event(), threading.Event()

    def wait(asked: Range) -> None:
        begun.set()
        go.wait(10)

    store.before = wait
    with Reader(remote, "train", cache=CacheConfig(threads=1)) as reader:
        for lane, number, first in ((0, 0, 0), (0, 1, 2), (0, 2, 4), (1, 0, 6), (2, 0, 8)):
            reader.expect((lane, 0, number), rows(first, first + 2))
            begun.wait(10)
        go.set()
        until(lambda: reader.stats.fetched_blocks == 5)
        offsets = reader.index.offsets
        assert [start for _, start, _ in store.asked] == [offsets[first] for first in (0, 6, 8, 2, 4)]


def test_a_reader_fetches_what_nobody_has_begun(remote: Dataset, store: Store) -> None:
    """So however many blocks are in front of it, a batch does not wait for them."""
    go = threading.Event()

    def hold_threads(asked: Range) -> None:
        if threading.current_thread().name.startswith("blocks"):
            go.wait(10)

    store.before = hold_threads
    with Reader(remote, "train", cache=CacheConfig(threads=1)) as reader:
        reader.expect((0, 0, 0), rows(0, 30))
        reader.expect((1, 0, 0), rows(71, 80))
        until(lambda: len(store.asked) == 1)
        assert spoiled(reader, range(71, 80), (1, 0, 0)) == []
        go.set()
        assert spoiled(reader, range(30), (0, 0, 0)) == []
        assert reader.stats.fetched_blocks == len(store.asked) == 2 and reader.stats.direct_reads == 0
        assert reader.stats.wait_s > 0


def test_a_block_that_never_fits_does_not_hold_up_the_others(
    remote: Dataset, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("arena", "blocks"):
        monkeypatch.setattr(f"vitcore.data.reading.{module}.PAGE", 1024)
    with Reader(remote, "train", cache=CacheConfig(limit=8 * 1024)) as reader:
        reader.expect((0, 0, 0), rows(0, 30))
        reader.expect((1, 0, 0), rows(31, 34))
        until(lambda: reader.stats.fetched_blocks == 1)
        assert spoiled(reader, range(30)) == []
        assert reader.stats.direct_reads == 30


def test_pages_are_not_given_back_while_somebody_copies_from_them(
    remote: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go, real = threading.Event(), threading.Event(), Arena.read

    def slow(arena: Arena, pages: list[int], start: int, size: int) -> bytes:
        reading.set()
        go.wait(10)
        return real(arena, pages, start, size)

    with Reader(remote, "train", cache=CacheConfig(limit=PAGE)) as reader:
        reader.expect((0, 0, 0), rows(0, 30))
        until(lambda: reader.stats.fetched_blocks == 1)
        monkeypatch.setattr(Arena, "read", slow)
        copying = threading.Thread(target=reader.read, args=(3, (0, 0, 0)))
        copying.start()
        reading.wait(10)
        arena, (block,) = reader._cache._arena, reader._expected._lanes[0].windows[0, 0].blocks()
        reader._cache.drop([block])
        assert arena is not None and arena.take(1) is None
        go.set()
        copying.join()
        assert arena.take(1) == [0] and reader.stats.direct_reads == 0


def test_readers_share_a_cache_that_outlives_them(remote: Dataset, store: Store) -> None:
    cache = BlockCache(CacheConfig(limit=2 * PAGE))
    for _ in range(3):
        with Reader(remote, "train", cache=cache) as one, Reader(remote, "train", cache=cache) as other:
            for reader in (one, other):
                reader.expect(SPAN, rows(0, 30))
            assert spoiled(one, range(30)) == spoiled(other, range(25)) == []
            assert one.stats.fetched_blocks == other.stats.fetched_blocks == 1
    cache.close()


def test_blocks_that_fail_or_come_short_leave_every_sample_exact(
    remote: Dataset, store: Store, small_blocks: None
) -> None:
    sizes = set(remote.index("train").sizes.tolist())
    turns = iter(range(10**6))

    def fail(asked: Range) -> bytes | None:
        url, start, stop = asked
        if stop - start in sizes:
            return None
        turn = next(turns) % 3
        if turn == 0:
            raise OSError("reset")
        data = storage.read(url)
        return data[start : (start + stop) // 2] if turn == 1 else bytes(stop - start)

    store.before = fail
    with Reader(remote, "train") as reader:
        reader.expect(SPAN, rows(0, 100))
        assert spoiled(reader, range(100)) == []
        assert reader.stats.direct_reads > 50


def test_truncated_and_flipped_shards_spoil_the_samples_they_spoil(remote: Dataset, small_blocks: None) -> None:
    memory, index = fsspec.filesystem("memory"), remote.index("train")
    cut, flipped = "/blocks/train/00000.tar", bytearray(memory.cat_file("/blocks/train/00002.tar"))
    memory.pipe_file(cut, memory.cat_file(cut)[: int(index.offsets[22]) + 9])
    flipped[int(index.offsets[40]) + 9] ^= 4
    memory.pipe_file("/blocks/train/00002.tar", bytes(flipped))
    memory.rm("/blocks/train/00001.tar")
    with Reader(remote, "train") as reader:
        reader.expect(SPAN, rows(0, 100))
        assert spoiled(reader, range(100)) == [*range(22, 30), 30, 40]


def test_a_store_that_is_down_fails_the_work_and_one_that_is_back_goes_on(remote: Dataset, store: Store) -> None:
    down = threading.Event()
    down.set()

    def refuse(asked: Range) -> None:
        if down.is_set():
            raise OSError("503")

    with Reader(remote, "train") as reader:
        reader.index.shard(0)
        store.before = refuse
        reader.expect(SPAN, rows(0, 30))
        with pytest.raises(WorkError, match="could not be fetched: 503"):
            reader.read(0, SPAN)
        down.clear()
        reader.expect((0, 0, 1), rows(31, 71))
        assert spoiled(reader, range(31, 71), (0, 0, 1)) == spoiled(reader, range(30)) == []
        assert reader.stats.fetched_blocks == 1


def test_a_full_disk_is_said_once_and_samples_are_read_one_by_one(
    remote: Dataset, small_blocks: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, room = os.pwrite, iter(range(5))

    def pwrite(file: int, data: bytes, at: int) -> int:
        if at // PAGE >= 5 or next(room, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with caplog.at_level(logging.WARNING), Reader(remote, "train", cache=CacheConfig(threads=2)) as reader:
        reader.expect(SPAN, rows(0, 100))
        assert spoiled(reader, range(100)) == []
        assert reader.stats.direct_reads > 30
        assert reader._cache._arena is not None and reader._cache._arena.pages <= 5
        assert len(caplog.records) == 1 and "No space left" in caplog.text


def test_a_folder_that_cannot_hold_a_cache_is_named(remote: Dataset, tmp_path: Path) -> None:
    cache = CacheConfig(folder=tmp_path / "missing")
    with Reader(remote, "train", cache=cache) as reader, pytest.raises(WorkError, match=r"missing .*another folder"):
        reader.expect(SPAN, rows(0, 30))


def test_closing_lets_a_reader_that_waits_go(remote: Dataset, store: Store) -> None:
    go, got = threading.Event(), []

    def hold_blocks(asked: Range) -> None:
        if threading.current_thread().name.startswith("blocks"):
            go.wait(10)

    store.before = hold_blocks
    reader = Reader(remote, "train", cache=CacheConfig(threads=1))
    reader.expect(SPAN, rows(0, 30))
    until(lambda: len(store.asked) == 1)
    waiting = threading.Thread(target=lambda: got.append(reader.read(4, SPAN)))
    waiting.start()
    reader.close()
    waiting.join(10)
    assert [len(data) for data in got] == [reader.index.sizes[4]]
    go.set()
    until(lambda: not any(thread.name.startswith("blocks") for thread in threading.enumerate()))
    reader.expect(SPAN, rows(0, 30))
    assert reader.read(4, SPAN) == got[0]


def test_pages_are_handed_out_once_and_hold_what_was_written(tmp_path: Path) -> None:
    arena = Arena(tmp_path, 8 * PAGE)
    rng = np.random.default_rng(0)
    held: dict[int, tuple[list[int], bytes]] = {}
    for turn in range(200):
        if turn % 3 == 2 and held:
            arena.give(held.pop(int(rng.choice(list(held))))[0])
        data = rng.bytes(int(rng.integers(1, 3 * PAGE)))
        pages = arena.take(len(data))
        if pages is None:
            assert sum(len(pages) for pages, _ in held.values()) + -(-len(data) // PAGE) > 8
        else:
            arena.write(pages, data)
            held[turn] = pages, data
        taken = [page for pages, _ in held.values() for page in pages]
        assert len(set(taken)) == len(taken) and all(0 <= page < 8 for page in taken)
        for pages, data in held.values():
            start = int(rng.integers(0, len(data)))
            assert arena.read(pages, start, len(data) - start) == data[start:]
    assert len(held) > 1


def test_a_killed_process_leaves_no_file(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time; from vitcore.data.reading.arena import Arena;"
        "arena = Arena(pathlib.Path(sys.argv[1]), 1 << 24);"
        "arena.write(arena.take(1 << 20), bytes(1 << 20)); print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    assert list(tmp_path.iterdir()) == []
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert list(tmp_path.iterdir()) == []
