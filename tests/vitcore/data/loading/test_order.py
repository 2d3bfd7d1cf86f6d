"""The sample order: exact, elastic, resumable (design of the data plane), and cheap at any scale."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

from vitcore.data.loading import order as order_module
from vitcore.data.loading.order import LaneOrder, default_lanes, keyed, rank_lanes, rank_slots, resolve_lanes
from vitcore.errors import RequestError

UNEVEN = [40, 3, 61, 0, 17, 29, 53]  # 203 samples
PINNED_RAW = [17238901443810792338, 5303507824929855092]
PINNED_VIEWS = [79, 76, 77, 74, 117, 116, 111, 114]


def lane_length(order: LaneOrder, lane: int) -> int:
    return (lane + 1) * order.samples // order.lanes - lane * order.samples // order.lanes


@pytest.mark.parametrize(("lanes", "window"), [(1, 1024), (5, 7), (8, 1), (16, 1024), (203, 4)])
def test_every_lane_shows_its_samples_once_an_epoch_and_lanes_share_the_split(lanes: int, window: int) -> None:
    order = LaneOrder(UNEVEN, lanes=lanes, window=window, seed=3)
    for epoch in range(3):
        seen = []
        for lane in range(lanes):
            length = lane_length(order, lane)
            epochs, rows = order.run(lane, epoch * length, (epoch + 1) * length)
            assert (epochs == epoch).all()
            seen.append(rows)
        assert sorted(np.concatenate(seen)) == list(range(203))


def test_epochs_seeds_and_sources_differ_and_repeat_themselves() -> None:
    def first_epoch(**change: int) -> list[int]:
        order = LaneOrder(UNEVEN, lanes=1, window=64, **{"seed": 3, **change})
        return order.run(0, 0, 203)[1].tolist()

    assert first_epoch() == first_epoch()
    assert first_epoch() != first_epoch(seed=4)
    assert first_epoch() != first_epoch(source=1)
    order = LaneOrder(UNEVEN, lanes=1, window=64, seed=3)
    assert order.run(0, 0, 203)[1].tolist() != order.run(0, 203, 406)[1].tolist()


def test_any_range_asked_in_any_order_equals_the_walk() -> None:
    walk = LaneOrder(UNEVEN, lanes=5, window=7, seed=0)
    steps = [[walk.run(lane, step * 8, step * 8 + 8) for lane in range(5)] for step in range(60)]
    jump = LaneOrder(UNEVEN, lanes=5, window=7, seed=0)
    for step in (59, 0, 31, 30, 7):
        for lane in (4, 0, 2):
            for ours, theirs in zip(jump.run(lane, step * 8, step * 8 + 8), steps[step][lane], strict=True):
                assert (ours == theirs).all()


def test_a_window_is_a_run_of_shards_so_that_reads_are_local() -> None:
    order = LaneOrder([100] * 20, lanes=4, window=50, seed=0)
    for start in range(0, 500, 50):
        shards = set((order.run(1, start, start + 50)[1] // 100).tolist())
        assert len(shards) <= 2


@pytest.mark.parametrize(("lanes", "window"), [(1, 64), (5, 7), (8, 1), (203, 4)])
def test_windows_follow_each_other_and_hold_what_their_samples_show(lanes: int, window: int) -> None:
    order = LaneOrder(UNEVEN, lanes=lanes, window=window, seed=3)
    for lane in {0, lanes // 2, lanes - 1}:
        at, span = 0, order.span(lane, 0)
        while at < 2 * lane_length(order, lane):
            assert span == order.span(lane, at)
            rows = order.window_rows(*span)
            assert rows.tolist() != [] and set(rows) == set(order.run(lane, at, at + len(rows))[1])
            assert order.span(lane, at + len(rows) - 1) == span
            assert order.turns(span) == range(at, at + len(rows))
            at, span = at + len(rows), order.next_span(span)
        assert span[1] >= 2


def test_the_streams_are_pinned() -> None:
    """A new release of numpy, or of ours, must not change the order of a run that is to be resumed."""
    assert keyed("vit.test", 1, -2).random_raw(2).tolist() == PINNED_RAW
    assert LaneOrder(UNEVEN, lanes=5, window=7, seed=0).run(3, 37, 45)[1].tolist() == PINNED_VIEWS
    assert keyed("a", 1, 23).random_raw() != keyed("a", 12, 3).random_raw() != keyed("b", 12, 3).random_raw()


def test_many_shards_are_dealt_into_hands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_module, "_FLAT_SHARDS", 16)
    sizes = np.random.default_rng(0).integers(0, 9, 107)
    order = LaneOrder(sizes, lanes=3, window=10, seed=5)
    for epoch in range(2):
        seen = [order.run(i, epoch * lane_length(order, i), (epoch + 1) * lane_length(order, i))[1] for i in range(3)]
        assert sorted(np.concatenate(seen)) == list(range(int(sizes.sum())))
    shard_of = np.repeat(np.arange(107), sizes)
    visited = shard_of[np.concatenate(seen)]
    assert (np.diff(visited) < 0).any()


def test_internet_scale_costs_milliseconds_and_little_memory() -> None:
    sizes = np.full(580_000, 10_000)
    tracemalloc.start()
    order = LaneOrder(sizes, lanes=1024, window=1024, seed=0)
    assert order.samples == 5_800_000_000
    took = []
    for step in (3_000_000, 17, 91_234_567):
        began = time.perf_counter()
        for lane in rank_lanes(50, 64, 1024):
            _, rows = order.run(lane, step * 8, step * 8 + 8)
            assert (rows < order.samples).all()
        took.append(time.perf_counter() - began)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert min(took) < 0.1
    assert peak < 150e6


@pytest.mark.parametrize(
    ("batch", "lanes"), [(1, 1), (7, 1), (8, 1), (15, 1), (16, 2), (64, 8), (100, 10), (127, 1), (1024, 128), (96, 12)]
)
def test_default_lanes_leave_at_least_eight_slots(batch: int, lanes: int) -> None:
    assert default_lanes(batch) == lanes


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"batch_size": 64, "samples": 100, "lanes": 7}, "does not divide the batch of 64"),
        ({"batch_size": 64, "samples": 100, "lanes": 0}, "does not divide the batch of 64"),
        ({"batch_size": 64, "samples": 5}, "at most 5"),
        ({"batch_size": 64, "samples": 100, "world": 9}, "set data.lanes to 16 or"),
        ({"batch_size": 4, "samples": 100, "world": 9}, "larger train.batch_size"),
        ({"batch_size": 4, "samples": 0}, "empty"),
    ],
)
def test_lanes_that_do_not_fit_get_one_clear_sentence(request_: dict[str, int], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        resolve_lanes(**request_)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_every_lane_has_one_rank_and_ranks_have_equal_slots(size: int) -> None:
    lanes = [lane for rank in range(size) for lane in rank_lanes(rank, size, 8)]
    assert lanes == list(range(8))
    assert all(len(rank_lanes(rank, size, 8)) * 4 <= rank_slots(size, 8, 4) for rank in range(size))
    assert rank_slots(3, 8, 4) == 12
