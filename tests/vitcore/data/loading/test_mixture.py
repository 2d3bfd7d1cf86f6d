"""Mixtures: every dataset in its share at every step, in an order of its own, and classes matched by name."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vitcore.data.dataset.manifest import Dataset, publish
from vitcore.data.loading.mixture import MixedOrder, Mixture, spread
from vitcore.data.loading.order import LaneOrder
from vitcore.errors import RequestError

SIZES = ([40, 3, 61, 1, 17, 28, 53], [30, 9, 25], [500])
WEIGHTS = (5, 2, 1)


def mixed(*, lanes: int = 8, lane_size: int = 6, repeats: int = 1, weights: tuple[int, ...] = WEIGHTS) -> MixedOrder:
    orders = [
        LaneOrder(sizes, lanes=lanes, window=16, seed=3, source=source)
        for source, sizes in enumerate(SIZES[: len(weights)])
    ]
    return MixedOrder(orders, weights, lane_size=lane_size, repeats=repeats)


@pytest.mark.parametrize("weights", [(1,), (1, 1), (3, 1), (5, 2, 1), (7, 7, 14), (100, 1), (1, 2, 3, 4, 5)])
def test_a_round_holds_what_the_weights_say_spread_evenly(weights: tuple[int, ...]) -> None:
    turns = spread(weights)
    shares = np.array(weights) / sum(weights)
    assert np.allclose(np.bincount(turns, minlength=len(weights)) / len(turns), shares)
    shown = (np.concatenate([turns, turns])[:, None] == np.arange(len(weights))).cumsum(0)
    expected = np.arange(1, 2 * len(turns) + 1)[:, None] * shares
    assert np.abs(shown - expected).max() <= 1.5


@pytest.mark.parametrize("repeats", [1, 3])
def test_jumping_anywhere_equals_walking_there(repeats: int) -> None:
    walk = mixed(repeats=repeats).views(5, 0, 700)
    for start in (0, 1, 6, 199, 200, 611):
        jump = mixed(repeats=repeats).views(5, start, start + 7)
        for ours, theirs in zip(jump, walk, strict=True):
            assert ours.tolist() == theirs[start : start + 7].tolist()


def test_a_lane_shows_each_dataset_in_that_datasets_own_order() -> None:
    views = mixed().views(2, 0, 900)
    for source, sizes in enumerate(SIZES):
        here = views.sources == source
        alone = LaneOrder(sizes, lanes=8, window=16, seed=3, source=source)
        epochs, samples = alone.run(2, 0, int(here.sum()))
        assert views.turns[here].tolist() == list(range(int(here.sum())))
        assert views.epochs[here].tolist() == epochs.tolist()
        assert views.samples[here].tolist() == samples.tolist()


@pytest.mark.parametrize(("lanes", "lane_size", "repeats"), [(8, 6, 1), (4, 16, 1), (12, 1, 1), (8, 6, 2)])
def test_every_step_and_every_ranks_part_of_it_hold_the_shares(lanes: int, lane_size: int, repeats: int) -> None:
    order = mixed(lanes=lanes, lane_size=lane_size, repeats=repeats)
    for step in range(30):
        shown = [order.views(lane, step * lane_size, (step + 1) * lane_size).sources for lane in range(lanes)]
        for owned in (shown, shown[: lanes // 2], shown[lanes // 2 :]):
            counts = Counter(np.concatenate(owned).tolist())
            slots = lane_size * len(owned)
            for source, weight in enumerate(WEIGHTS):
                assert abs(counts[source] - slots * weight / 8) <= 1.5 * repeats + 1


def test_repeats_follow_each_other() -> None:
    once, thrice = mixed(lane_size=6).views(0, 0, 40), mixed(lane_size=18, repeats=3).views(0, 5, 115)
    assert thrice.samples.tolist() == np.repeat(once.samples, 3)[5:115].tolist()
    assert thrice.sources.tolist() == np.repeat(once.sources, 3)[5:115].tolist()
    assert thrice.repeats.tolist() == (np.arange(5, 115) % 3).tolist()


def test_far_away_costs_what_the_start_costs() -> None:
    def seconds(start: int) -> float:
        order = mixed()
        began = time.perf_counter()
        order.views(7, start, start + 16)
        return time.perf_counter() - began

    near, far = (min(seconds(start) for _ in range(20)) for start in (0, 10**14))
    assert far < 2 * near + 1e-3


@pytest.fixture
def named(make_dataset: Callable[..., Dataset], tmp_path: Path) -> Callable[..., Dataset]:
    """`named("a", "b", counts=(3, 1))`: a dataset with these classes and, it says, that many samples of each."""

    def named(*classes: str, counts: tuple[int, ...]) -> Dataset:
        made = make_dataset(tmp_path / "".join(classes), [sum(counts)])
        split = made.split("train").model_copy(update={"class_counts": counts})
        manifest = made.manifest.model_copy(update={"classes": classes, "splits": {"train": split}})
        return Dataset.open(publish(made.url, manifest, {"train": made.shards("train")}, expected=made.digest))

    return named


def test_classes_are_matched_by_name_in_the_order_of_the_first_dataset(named: Callable[..., Dataset]) -> None:
    birds, pets = named("wren", "owl", counts=(3, 1)), named("cat", "owl", "dog", counts=(6, 3, 1))
    mixture = Mixture([birds, pets], (3, 1))
    assert mixture.classes == ("wren", "owl", "cat", "dog")
    assert mixture.labels(0).tolist() == [0, 1]
    assert mixture.labels(1).tolist() == [2, 1, 3]
    # Of 14 samples 10.5 are birds and 3.5 pets.
    assert mixture.class_counts("train") == [round(n) for n in (7.875, 2.625 + 1.05, 2.1, 0.35)]
    alone = Mixture([pets])
    assert alone.is_single
    assert (alone.classes, alone.class_counts("train")) == (("cat", "owl", "dog"), [6, 3, 1])


def test_weights_must_be_as_many_as_datasets(named: Callable[..., Dataset]) -> None:
    both = [named("a", counts=(2,)), named("b", counts=(2,))]
    for weights, said in (((), "no weights are"), ((1,), "1 weight is"), ((1, 2, 3), "3 weights are")):
        with pytest.raises(RequestError, match=f"{said} given for 2 datasets"):
            Mixture(both, weights)
    with pytest.raises(RequestError, match=r"take data\.mixture away"):
        Mixture(both[:1], (1, 2))
