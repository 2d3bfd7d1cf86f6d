"""The loaders: the same global batches and pixels at any world size and number of threads, and every sample once."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vitcore.data.batch import Batch, Mix
from vitcore.data.loader import EvalLoader, TrainLoader
from vitcore.data.manifest import Dataset
from vitcore.data.order import LaneOrder
from vitcore.errors import RequestError
from vitcore.recipe import AugmentConfig, DataConfig

AUGMENT = AugmentConfig(randaug_layers=2, erasing=0.3, mixup=0.8, cutmix=1.0, mix_prob=0.9)
DATA = DataConfig(image_size=16, window=16, augment=AUGMENT)
LANES, BATCH, STEPS = 8, 64, 8


def loader(dataset: Dataset, data: DataConfig = DATA, **options: Any) -> TrainLoader:
    return TrainLoader(dataset, data, **{"batch_size": BATCH, "seed": 1, "threads": 0, **options})


def take(dataset: Dataset, count: int, data: DataConfig = DATA, **options: Any) -> list[Batch]:
    with loader(dataset, data, **options) as batches:
        return list(itertools.islice(batches, count))


def assert_equal(ours: Batch, theirs: Batch) -> None:
    assert (ours.step, ours.lane_size) == (theirs.step, theirs.lane_size)
    assert ours.bad == theirs.bad
    for name in ("images_SCHW", "labels_S", "weights_S", "samples_S"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert (ours.mix is None) == (theirs.mix is None)
    if ours.mix is not None and theirs.mix is not None:
        assert torch.equal(ours.mix.lam_S, theirs.mix.lam_S)
        assert torch.equal(ours.mix.box_S4, theirs.mix.box_S4)


def joined(ranks: list[Batch], lanes: list[int]) -> Batch:
    """The global batch: the ranks' lanes without their padding."""
    counts = [count * batch.lane_size for count, batch in zip(lanes, ranks, strict=True)]
    for count, batch in zip(counts, ranks, strict=True):
        assert (batch.weights_S[count:] == 0).all()
        assert (batch.samples_S[count:] == -1).all()
        assert (batch.labels_S[count:] == -1).all()
        assert (batch.images_SCHW[count:] == 0).all()

    def cat(name: str) -> torch.Tensor:
        return torch.cat([getattr(batch, name)[:count] for count, batch in zip(counts, ranks, strict=True)])

    mixes = [(count, batch.mix) for count, batch in zip(counts, ranks, strict=True) if batch.mix is not None]
    mix = None
    if mixes:
        mix = Mix(torch.cat([m.lam_S[:n] for n, m in mixes]), torch.cat([m.box_S4[:n] for n, m in mixes]))
    fields = (cat(name) for name in ("images_SCHW", "labels_S", "weights_S", "samples_S"))
    bad = tuple(key for batch in ranks for key in batch.bad)
    return Batch(ranks[0].step, *fields, ranks[0].lane_size, mix, bad)


@pytest.fixture(scope="module")
def reference(uneven: Dataset) -> list[Batch]:
    return take(uneven, STEPS)


@pytest.mark.parametrize("threads", range(4))
@pytest.mark.parametrize("size", range(1, 6))
def test_the_same_global_batches_and_pixels(uneven: Dataset, reference: list[Batch], size: int, threads: int) -> None:
    ranks, lanes = [], []
    for rank in range(size):
        with loader(uneven, rank=rank, size=size, threads=threads) as batches:
            ranks.append(list(itertools.islice(batches, STEPS)))
            lanes.append(len(batches.lanes))
    assert {len(batch.weights_S) for rank in ranks for batch in rank} == {math.ceil(LANES / size) * 8}
    for step in range(STEPS):
        assert_equal(joined([rank[step] for rank in ranks], lanes), reference[step])


@pytest.mark.parametrize("threads", range(4))
@pytest.mark.parametrize("size", range(1, 6))
def test_every_sample_exactly_once_a_lane_epoch(uneven: Dataset, size: int, threads: int) -> None:
    data = DATA.model_copy(update={"augment": AugmentConfig(), "image_size": 8})
    shown: dict[int, list[int]] = {}
    for rank in range(size):
        with loader(uneven, data, rank=rank, size=size, threads=threads) as batches:
            for batch in itertools.islice(batches, 8):
                for place, lane in enumerate(batches.lanes):
                    shown.setdefault(lane, []).extend(batch.samples_S[place * 8 : place * 8 + 8].tolist())
    assert sorted(shown) == list(range(LANES))
    for epoch in range(2):
        seen: Counter[int] = Counter()
        for lane, samples in shown.items():
            length = (lane + 1) * 203 // LANES - lane * 203 // LANES
            seen.update(samples[epoch * length : (epoch + 1) * length])
        assert seen == Counter(range(203))


@pytest.mark.parametrize("start", [1, 3, STEPS - 1])
def test_resuming_anywhere_equals_going_on(uneven: Dataset, reference: list[Batch], start: int) -> None:
    for threads in (0, 2):
        resumed = take(uneven, STEPS - start, start_step=start, threads=threads)
        for ours, theirs in zip(resumed, reference[start:], strict=True):
            assert_equal(ours, theirs)


def test_resuming_at_another_world_size_goes_on_with_the_same_batches(uneven: Dataset, reference: list[Batch]) -> None:
    ranks = [take(uneven, 2, start_step=4, rank=rank, size=3) for rank in range(3)]
    for step in range(2):
        assert_equal(joined([rank[step] for rank in ranks], [2, 3, 3]), reference[4 + step])


def test_labels_belong_to_samples_and_bad_ones_are_named_and_weightless(
    uneven: Dataset, reference: list[Batch]
) -> None:
    bad: Counter[str] = Counter()
    for batch in reference:
        unreadable = torch.isin(batch.samples_S, torch.tensor([5, 77]))
        assert torch.equal(batch.labels_S, batch.samples_S % 10)
        assert torch.equal(batch.weights_S == 0, unreadable)
        assert (batch.images_SCHW[unreadable] == 0).all()
        assert len(batch.bad) == int(unreadable.sum())
        bad.update(batch.bad)
        mix = batch.mix
        assert mix is not None
        partners = batch.weights_S.view(-1, 8).flip(1).reshape(-1)
        assert (mix.lam_S[partners == 0] == 1).all()
        assert (mix.box_S4[partners == 0] == 0).all()
    assert set(bad) == {"000005", "000077"}


def test_repeats_show_a_sample_several_times_differently(uneven: Dataset) -> None:
    data = DATA.model_copy(update={"repeats": 4, "augment": AugmentConfig()})
    with loader(uneven, data) as batches:
        assert batches.steps_per_epoch == 203 * 4 / 64
        batch = next(batches)
    groups = batch.samples_S.view(-1, 4)
    assert (groups == groups[:, :1]).all()
    assert groups[:, 0].unique().numel() == 16
    views = batch.images_SCHW.view(16, 4, -1)[batch.weights_S.view(16, 4)[:, 0] > 0]
    assert all(len({tuple(view.tolist()) for view in group}) == 4 for group in views)


def test_an_epoch_later_a_sample_is_seen_otherwise(uneven: Dataset) -> None:
    data = DATA.model_copy(update={"augment": AugmentConfig()})
    first: dict[int, torch.Tensor] = {}
    again = 0
    for batch in take(uneven, STEPS, data):
        for sample, image in zip(batch.samples_S.tolist(), batch.images_SCHW, strict=True):
            if sample in first and sample not in (5, 77):
                again += 1
                assert not torch.equal(first[sample], image)
            first.setdefault(sample, image)
    assert again > 100


def test_more_ranks_than_lanes_or_an_unknown_split_is_a_wrong_request(uneven: Dataset) -> None:
    with pytest.raises(RequestError, match="9 workers cannot share 8 lanes"):
        loader(uneven, size=9)
    with pytest.raises(RequestError, match="no split 'trian'"):
        loader(uneven, DATA.model_copy(update={"train_split": "trian"}))


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader-")]


def test_closing_stops_all_threads_wherever_they_are(uneven: Dataset) -> None:
    for taken in (0, 1, 3):
        batches = loader(uneven, threads=3)
        list(itertools.islice(batches, taken))
        assert len(running()) == 3
        batches.close()
        batches.close()
        assert not running()
        assert next(batches, None) is None


@pytest.mark.parametrize("threads", [0, 2])
def test_what_goes_wrong_in_a_thread_surfaces_where_batches_are_taken(
    uneven: Dataset, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LaneOrder.views

    def fail(self: LaneOrder, lane: int, start: int, stop: int) -> Any:
        if start >= 16:
            raise ZeroDivisionError("in a thread")
        return real(self, lane, start, stop)

    monkeypatch.setattr(LaneOrder, "views", fail)
    batches = loader(uneven, threads=threads)
    assert [next(batches).step, next(batches).step] == [0, 1]
    with pytest.raises(ZeroDivisionError, match="in a thread"):
        next(batches)
    assert not running()


def test_closing_lets_a_consumer_in_another_thread_go(uneven: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = threading.Event()
    monkeypatch.setattr("vitcore.data.assembly.decode", lambda data: hold.wait(5) or torch.zeros(3, 8, 8))
    batches = loader(uneven, threads=1)
    caught: list[BaseException] = []

    def consume() -> None:
        try:
            next(batches)
        except BaseException as error:
            caught.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    closer = threading.Thread(target=batches.close)
    closer.start()
    hold.set()
    closer.join(5)
    consumer.join(5)
    assert not closer.is_alive()
    assert not consumer.is_alive()
    assert caught


def test_threads_work_ahead_and_waiting_is_measured(uneven: Dataset) -> None:
    with loader(uneven, threads=2, depth=2) as batches:
        next(batches)
        assert batches.wait_s > 0
        ahead = batches._pipeline._ahead
        until = time.monotonic() + 10
        while not all(assembly.done.is_set() for assembly in ahead) and time.monotonic() < until:
            time.sleep(0.01)
        assert len(ahead) == 2
        before = batches.wait_s
        next(batches)
        assert batches.wait_s - before < 0.05


def everything(make: Callable[[int], EvalLoader], size: int) -> Iterator[Batch]:
    for rank in range(size):
        with make(rank) as batches:
            found = list(batches)
            assert len(found) == len(batches)
            yield from found


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("size", range(1, 6))
def test_evaluation_shows_every_sample_once_in_equal_batches(uneven: Dataset, size: int, threads: int) -> None:
    options = {"image_size": 16, "batch_size": 32, "size": size, "threads": threads}
    batches = list(everything(lambda rank: EvalLoader(uneven, "train", rank=rank, **options), size))
    assert len({batch.images_SCHW.shape for batch in batches}) == 1
    assert len(batches[0].weights_S) <= 32
    assert len(batches) == size * math.ceil(math.ceil(203 / size) / len(batches[0].weights_S))
    samples = torch.cat([batch.samples_S for batch in batches])
    weights = torch.cat([batch.weights_S for batch in batches])
    assert samples[samples >= 0].tolist() == list(range(203))
    assert samples[weights > 0].tolist() == [n for n in range(203) if n not in (5, 77)]
    assert sorted(key for batch in batches for key in batch.bad) == ["000005", "000077"]
    images = torch.cat([batch.images_SCHW for batch in batches])
    alone = EvalLoader(uneven, "train", image_size=16, batch_size=203, threads=0)
    assert torch.equal(images[samples >= 0], next(iter(alone)).images_SCHW)
    assert (images[weights == 0] == 0).all()


def test_evaluation_can_be_repeated_left_half_way_and_given_a_range(uneven: Dataset) -> None:
    with EvalLoader(uneven, "train", image_size=16, batch_size=20, start=30, stop=75) as batches:
        for _ in batches:
            break
        first, second = list(batches), list(batches)
        assert batches.wait_s > 0
        shown = [sample for batch in first for sample in batch.samples_S.tolist() if sample >= 0]
        assert shown == list(range(30, 75))
        for ours, theirs in zip(first, second, strict=True):
            assert_equal(ours, theirs)
    assert not running()


def test_a_rank_with_nothing_to_show_still_yields_its_batches(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset = make_dataset(tmp_path, [2])
    for threads in (0, 2):
        counts = []
        for rank in range(3):
            with EvalLoader(
                dataset, "train", image_size=8, batch_size=4, rank=rank, size=3, threads=threads
            ) as batches:
                counts.append([int(batch.weights_S.sum()) for batch in batches])
        assert sorted(counts) == [[0], [1], [1]]
    with EvalLoader(dataset, "train", image_size=8, batch_size=4, start=2, stop=2) as empty:
        assert list(empty) == []


def test_a_crop_larger_than_the_resize_is_a_wrong_request(uneven: Dataset) -> None:
    with pytest.raises(RequestError, match="does not fit in a short side of 16"):
        EvalLoader(uneven, "train", image_size=32, resize=16, batch_size=4)
