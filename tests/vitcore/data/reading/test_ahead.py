"""Looking ahead: every sample is there when it is read, and nodes share the bytes of the dataset between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import fsspec
import pytest

from vitcore import storage
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.loading.order import Ints, LaneOrder, rank_lanes
from vitcore.data.reading.ahead import LookAhead, RangeAhead
from vitcore.data.reading.reader import Reader

SIZES = [40, 3, 61, 0, 17, 29, 53]  # 203 samples
LANES, WINDOW, SLOTS = 8, 12, 4


class Asked:
    """A reader that only writes down what it should expect."""

    def __init__(self) -> None:
        self.windows: dict[tuple[int, int, int], tuple[list[int], int]] = {}

    def expect(self, span: tuple[int, int, int], rows: Ints, uses: int = 1) -> None:
        self.windows.setdefault(span, (rows.tolist(), uses))


@pytest.fixture(scope="module")
def remote(make_dataset: Callable[..., Dataset], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    folder = tmp_path_factory.mktemp("ahead")
    make_dataset(folder, SIZES)
    memory = fsspec.filesystem("memory")
    memory.put(f"{folder}/", "/ahead", recursive=True)
    yield Dataset.open("memory://ahead")
    memory.rm("/ahead", recursive=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    ranges, real = [], storage.read_range

    def read_range(url: str, start: int, stop: int) -> bytes:
        ranges.append((url, start, stop))
        return real(url, start, stop)

    monkeypatch.setattr(storage, "read_range", read_range)
    return ranges


def steps(lanes: range, stop: int) -> Iterator[list[tuple[int, int, int]]]:
    """What a loader has in the making at a time, two steps: lane, first and last sample of each piece."""
    for first in range(0, stop, 2 * SLOTS):
        starts = [start for start in (first, first + SLOTS) if start < stop]
        yield [(lane, start, min(start + SLOTS, stop)) for start in starts for lane in lanes]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_fetch_every_byte_of_the_dataset_once_between_them(
    remote: Dataset, asked: list[tuple[str, int, int]], world: int
) -> None:
    total = sum(shard.bytes for shard in remote.shards("train"))
    stop = remote.split("train").samples // LANES  # of the shortest lane's epoch
    shown: Counter[int] = Counter()
    for rank in range(world):
        before = len(asked)
        order, lanes = LaneOrder(SIZES, lanes=LANES, window=WINDOW, seed=1), rank_lanes(rank, world, LANES)
        with Reader(remote, "train") as reader, ThreadPoolExecutor(2) as pool:
            ahead = LookAhead(order, reader, uses=1, stop=stop)

            def show(piece: tuple[int, int, int], order=order, ahead=ahead, reader=reader) -> list[int]:
                lane, start, stop = piece
                rows = order.run(lane, start, stop)[1].tolist()
                for sample, row in zip(range(start, stop), rows, strict=True):
                    reader.read(row, ahead.advance(lane, sample))
                return rows

            for pieces in steps(lanes, stop):
                for rows in pool.map(show, pieces):
                    shown.update(rows)
            assert reader.stats.direct_reads == 0
            fetched = sum(stop - start for _, start, stop in asked[before:])
            assert reader.stats.fetched_bytes == fetched <= 1.1 * total * len(lanes) / LANES
    assert len(shown) == stop * LANES and set(shown.values()) == {1}
    ranges = sorted(asked)
    assert all(a[0] != b[0] or a[2] <= b[1] for a, b in pairwise(ranges))


@pytest.mark.parametrize("sample", [0, 3, 11, 12, 24, 25, 26, 60, 1_000_003])
def test_the_present_and_the_next_window_are_expected_wherever_a_lane_begins(sample: int) -> None:
    order, reader = LaneOrder(SIZES, lanes=LANES, window=WINDOW, seed=1), Asked()
    ahead = LookAhead(order, reader, uses=3)  # type: ignore[arg-type]
    span = ahead.advance(2, sample)
    following = order.next_span(span)
    assert list(reader.windows) == [span, following]
    epochs, rows = order.run(2, sample, sample + 1)
    assert span[:2] == (2, epochs[0]) and rows[0] in reader.windows[span][0]
    assert reader.windows[following] == (order.window_rows(*following).tolist(), 3)


@pytest.mark.parametrize(("stop", "windows"), [(27, {(2, 0, 1), (2, 0, 2), (2, 1, 0)}), (26, {(2, 0, 1), (2, 0, 2)})])
def test_nothing_is_expected_beyond_the_end_of_the_run(stop: int, windows: set[tuple[int, int, int]]) -> None:
    order, reader = LaneOrder(SIZES, lanes=LANES, window=WINDOW, seed=1), Asked()
    ahead = LookAhead(order, reader, stop=stop)  # type: ignore[arg-type]
    for sample in range(12, stop):
        row = order.run(2, sample, sample + 1)[1][0]
        assert row in reader.windows[ahead.advance(2, sample)][0]
    assert set(reader.windows) == windows
    assert sum(len(rows) for rows, _ in reader.windows.values()) == stop - 12


def test_threads_that_are_not_equally_far_change_nothing() -> None:
    order, reader = LaneOrder(SIZES, lanes=LANES, window=WINDOW, seed=1), Asked()
    ahead = LookAhead(order, reader, uses=1)  # type: ignore[arg-type]
    for sample in (13, 11, 14, 10, 15, 9):
        assert ahead.advance(0, sample) == order.span(0, sample)
    assert set(reader.windows) == {(0, 0, 0), (0, 0, 1), (0, 0, 2)}


def test_samples_that_a_resumed_run_skips_do_not_stay(remote: Dataset) -> None:
    order = LaneOrder(SIZES, lanes=1, window=WINDOW, seed=1)
    with Reader(remote, "train") as reader:
        ahead = LookAhead(order, reader, uses=1)
        for sample, row in zip(range(10, 60), order.run(0, 10, 60)[1].tolist(), strict=True):
            reader.read(row, ahead.advance(0, sample))
        assert min(reader._expected._lanes[0].windows) == (0, 3)  # the one before the last that was read
        assert reader.stats.direct_reads == 0


def test_a_range_is_fetched_stretch_by_stretch_once_a_pass(
    remote: Dataset, asked: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitcore.data.reading.ahead._STRETCH", 16)
    total = sum(shard.bytes for shard in remote.shards("train"))
    with Reader(remote, "train") as reader:
        for number in range(3):
            ahead = RangeAhead(reader, 7, 190)
            for row in range(7, 190):
                reader.read(row, ahead.advance(row))
                if number == 1 and row == 90:
                    break  # left half-way
        assert reader.stats.direct_reads == 0
        assert len(asked) == reader.stats.fetched_blocks
        assert reader.stats.fetched_bytes < 2.8 * total
        assert len(reader._expected._lanes[-1].windows) <= 3
