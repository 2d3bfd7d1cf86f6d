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

import fsspec
import pytest
import torch

from vitcore.data.dataset.index import decode as decode_table
from vitcore.data.dataset.index import encode as encode_table
from vitcore.data.dataset.manifest import Dataset, publish
from vitcore.data.loading import loader as loading
from vitcore.data.loading.batch import Batch, Mix
from vitcore.data.loading.loader import EvalLoader, TrainLoader
from vitcore.data.loading.mixture import MixedOrder
from vitcore.data.reading.blocks import CacheConfig
from vitcore.errors import RequestError
from vitcore.recipe import AugmentConfig, DataConfig, ViewConfig

AUGMENT = AugmentConfig(randaug_layers=2, erasing=0.3, mixup=0.8, cutmix=1.0, mix_prob=0.9)
DATA = DataConfig(image_size=16, window=16, augment=AUGMENT)
LIVELY = AugmentConfig(crop_scale=(0.05, 0.4), jitter=(0.4, 0.4, 0.2, 0.1), grey=0.2, blur=0.5, solarize=0.2)
MIXED = DATA.model_copy(update={"mixture": (2, 1), "views": (ViewConfig(count=2, image_size=8, augment=LIVELY),)})
LANES, BATCH, STEPS = 8, 64, 8
SIZES = {0: 203, 1: 64}
"""Samples of the datasets of the mixture."""


def loader(dataset: Dataset, data: DataConfig = DATA, **options: Any) -> TrainLoader:
    return TrainLoader(dataset, data, **{"batch_size": BATCH, "seed": 1, "threads": 0, **options})


def take(dataset: Dataset, count: int, data: DataConfig = DATA, **options: Any) -> list[Batch]:
    with loader(dataset, data, **options) as batches:
        return list(itertools.islice(batches, count))


@pytest.fixture(scope="module")
def other(make_dataset: Callable[..., Dataset], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """64 samples in 3 shards, whose classes are partly those of `uneven`; sample 9 is unreadable."""
    made = make_dataset(tmp_path_factory.mktemp("other"), [30, 9, 25], broken={9: b"no photograph"})
    manifest = made.manifest.model_copy(update={"classes": tuple("ijklmnopqr")})
    return Dataset.open(publish(made.url, manifest, {"train": made.shards("train")}, expected=made.digest))


@pytest.fixture(params=["alone", "mixed"])
def options(request: pytest.FixtureRequest, other: Dataset) -> dict[str, Any]:
    """What a loader is made with beside its dataset: alone, or in a mixture and with further views."""
    return {} if request.param == "alone" else {"data": MIXED, "others": [other]}


def assert_equal(ours: Batch, theirs: Batch) -> None:
    assert (ours.step, ours.lane_size, ours.captions) == (theirs.step, theirs.lane_size, theirs.captions)
    assert ours.bad == theirs.bad
    assert all(itertools.starmap(torch.equal, zip(ours.views, theirs.views, strict=True)))
    assert (ours.sources_S is None) == (theirs.sources_S is None)
    assert ours.sources_S is None or torch.equal(ours.sources_S, theirs.sources_S)
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
        assert all((view[count:] == 0).all() for view in batch.views)
        assert batch.sources_S is None or (batch.sources_S[count:] == -1).all()

    def cat(name: str) -> torch.Tensor:
        return torch.cat([getattr(batch, name)[:count] for count, batch in zip(counts, ranks, strict=True)])

    mixes = [(count, batch.mix) for count, batch in zip(counts, ranks, strict=True) if batch.mix is not None]
    mix = None
    if mixes:
        mix = Mix(torch.cat([m.lam_S[:n] for n, m in mixes]), torch.cat([m.box_S4[:n] for n, m in mixes]))
    fields = (cat(name) for name in ("images_SCHW", "labels_S", "weights_S", "samples_S"))
    bad = tuple(key for batch in ranks for key in batch.bad)
    more = zip(*(batch.more_views for batch in ranks), strict=True)
    further = tuple(torch.cat([view[:n] for view, n in zip(views, counts, strict=True)]) for views in more)
    sources = cat("sources_S") if ranks[0].sources_S is not None else None
    return Batch(ranks[0].step, *fields, ranks[0].lane_size, mix, bad, sources, more_views=further)


@pytest.fixture(scope="module")
def references(uneven: Dataset, other: Dataset) -> dict[bool, list[Batch]]:
    """The first batches, by whether they are of the mixture."""
    return {False: take(uneven, STEPS), True: take(uneven, STEPS, MIXED, others=[other])}


@pytest.fixture
def reference(references: dict[bool, list[Batch]], options: dict[str, Any]) -> list[Batch]:
    return references["others" in options]


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_same_global_batches_and_pixels(
    uneven: Dataset, reference: list[Batch], options: dict[str, Any], size: int, threads: int
) -> None:
    ranks, lanes = [], []
    for rank in range(size):
        with loader(uneven, rank=rank, size=size, threads=threads, **options) as batches:
            ranks.append(list(itertools.islice(batches, STEPS)))
            lanes.append(len(batches.lanes))
    assert {len(batch.weights_S) for rank in ranks for batch in rank} == {math.ceil(LANES / size) * 8}
    for step in range(STEPS):
        assert_equal(joined([rank[step] for rank in ranks], lanes), reference[step])


@pytest.mark.parametrize(("size", "threads"), [(1, 0), (2, 3), (3, 1), (4, 2), (5, 0)])
def test_every_sample_exactly_once_a_lane_epoch(
    uneven: Dataset, options: dict[str, Any], size: int, threads: int
) -> None:
    base = options.get("data", DATA)
    data = base.model_copy(update={"augment": AugmentConfig(), "image_size": 8, "views": ()})
    steps = 14 if data.mixture else 8
    shown: dict[tuple[int, int], list[int]] = {}
    for rank in range(size):
        with loader(uneven, **options | {"data": data}, rank=rank, size=size, threads=threads) as batches:
            for batch in itertools.islice(batches, steps):
                sources = [0] * len(batch.samples_S) if batch.sources_S is None else batch.sources_S.tolist()
                for slot, (source, sample) in enumerate(zip(sources, batch.samples_S.tolist(), strict=True)):
                    if slot < 8 * len(batches.lanes):
                        shown.setdefault((source, batches.lanes[slot // 8]), []).append(sample)
    assert sorted(shown) == [(source, lane) for source in range(1 + bool(data.mixture)) for lane in range(LANES)]
    for source, epoch in itertools.product({source for source, _ in shown}, range(2)):
        total, seen = SIZES[source], Counter[int]()
        for lane in range(LANES):
            length = (lane + 1) * total // LANES - lane * total // LANES
            seen.update(shown[source, lane][epoch * length : (epoch + 1) * length])
        assert seen == Counter(range(total))


@pytest.mark.parametrize("start", [1, 3, STEPS - 1])
def test_resuming_anywhere_equals_going_on(
    uneven: Dataset, reference: list[Batch], options: dict[str, Any], start: int
) -> None:
    for threads in (0, 2):
        resumed = take(uneven, STEPS - start, **options, start_step=start, threads=threads)
        for ours, theirs in zip(resumed, reference[start:], strict=True):
            assert_equal(ours, theirs)


def test_resuming_at_another_world_size_goes_on_with_the_same_batches(
    uneven: Dataset, reference: list[Batch], options: dict[str, Any]
) -> None:
    ranks = [take(uneven, 2, **options, start_step=4, rank=rank, size=3) for rank in range(3)]
    for step in range(2):
        assert_equal(joined([rank[step] for rank in ranks], [2, 3, 3]), reference[4 + step])


def test_labels_belong_to_samples_and_bad_ones_are_named_and_weightless(
    uneven: Dataset, reference: list[Batch]
) -> None:
    bad: Counter[str] = Counter()
    for batch in reference:
        sources = torch.zeros_like(batch.samples_S) if batch.sources_S is None else batch.sources_S
        own, theirs = torch.tensor([5, 77]), torch.tensor([9])
        unreadable = torch.where(sources == 0, torch.isin(batch.samples_S, own), torch.isin(batch.samples_S, theirs))
        assert torch.equal(batch.labels_S, batch.samples_S % 10 + 8 * sources)  # "i" and "j" are the same class in both
        assert torch.equal(batch.weights_S == 0, unreadable)
        assert all((view[unreadable] == 0).all() for view in batch.views)
        assert len(batch.bad) == int(unreadable.sum())
        bad.update(batch.bad)
        mix = batch.mix
        assert mix is not None
        partners = batch.weights_S.view(-1, 8).flip(1).reshape(-1)
        assert (mix.lam_S[partners == 0] == 1).all()
        assert (mix.box_S4[partners == 0] == 0).all()
    mixed = reference[0].sources_S is not None
    assert set(bad) == ({"0/000005", "0/000077", "1/000009"} if mixed else {"000005", "000077"})


def test_every_step_of_a_mixture_holds_its_shares_and_its_datasets_are_shuffled_apart(
    uneven: Dataset, other: Dataset, references: dict[bool, list[Batch]]
) -> None:
    for batch in references[True]:
        assert batch.sources_S is not None
        assert int((batch.sources_S == 1).sum()) in (21, 22)
    twice = DATA.model_copy(update={"mixture": (1, 1)})
    batch = take(uneven, 1, twice, others=[uneven])[0]
    assert batch.sources_S is not None
    first, second = (batch.samples_S[batch.sources_S == source].tolist() for source in (0, 1))
    assert len(first) == len(second) == 32
    assert first != second


def test_repeats_show_a_sample_several_times_differently_and_decode_it_once(
    uneven: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    real = loading.Photograph
    monkeypatch.setattr(loading, "Photograph", lambda data: decoded.append(data) or real(data))
    data = DATA.model_copy(update={"repeats": 4, "augment": AugmentConfig()})
    batch = take(uneven, 1, data)[0]
    groups = batch.samples_S.view(-1, 4)
    assert (groups == groups[:, :1]).all()
    assert groups[:, 0].unique().numel() == 16
    assert len(decoded) == 16
    views = batch.images_SCHW.view(16, 4, -1)[batch.weights_S.view(16, 4)[:, 0] > 0]
    assert all(len({tuple(view.tolist()) for view in group}) == 4 for group in views)


def test_further_views_differ_and_leave_the_first_one_as_it_is(uneven: Dataset) -> None:
    plain = AugmentConfig()
    data = DataConfig(image_size=16, window=16)
    views = (ViewConfig(augment=plain), ViewConfig(count=2, image_size=8, augment=LIVELY))
    batch, alone = take(uneven, 1, data.model_copy(update={"views": views}))[0], take(uneven, 1, data)[0]
    assert [tuple(view.shape[1:]) for view in batch.views] == [(3, 16, 16), (3, 16, 16), (3, 8, 8), (3, 8, 8)]
    assert torch.equal(batch.images_SCHW, alone.images_SCHW)
    readable = batch.weights_S > 0
    for ours, theirs in ((0, 1), (2, 3)):
        assert (batch.views[ours] != batch.views[theirs]).flatten(1).any(1)[readable].all()
    parts = list(batch.micro(8))
    for number, view in enumerate(batch.views):
        assert torch.equal(torch.cat([part.views[number] for part in parts]), view)


@pytest.fixture
def captioned(make_dataset: Callable[..., Dataset], tmp_path: Path) -> Dataset:
    """23 samples with 5 captions each, but for number 3, which has none, and number 4, which is unreadable."""
    made = make_dataset(tmp_path, [14, 9], broken={4: b"no photograph"})
    for shard in made.shards("train"):
        path = tmp_path / shard.index
        rows = decode_table(path.read_bytes()).to_pylist()
        captions = [[f"{row['key']} {n}" for n in range(5)] if row["key"] != "000003" else [] for row in rows]
        table = decode_table(path.read_bytes())
        place = table.schema.get_field_index("captions")
        path.write_bytes(encode_table(table.set_column(place, table.schema.field(place), [captions])))
    manifest = made.manifest.model_copy(update={"fields": ("image", "label", "captions")})
    return Dataset.open(publish(made.url, manifest, {"train": made.shards("train")}, expected=made.digest))


def test_one_of_several_captions_is_drawn_by_the_samples_own_seed(captioned: Dataset) -> None:
    data = DataConfig(image_size=8, window=4, lanes=2, captions=True, repeats=2)
    batches = take(captioned, 30, data, batch_size=16)
    drawn: dict[int, list[str]] = {}
    for batch in batches:
        assert batch.captions is not None
        for sample, caption in zip(batch.samples_S.tolist(), batch.captions, strict=True):
            drawn.setdefault(sample, []).append(caption)
    assert set(drawn[3]) == set(drawn[4]) == {""}
    for sample in set(range(23)) - {3, 4}:
        assert set(drawn[sample]) <= {f"{sample:06d} {n}" for n in range(5)}
    chosen = [caption[-1] for captions in drawn.values() for caption in captions if caption]
    assert all(60 < chosen.count(str(n)) < 120 for n in range(5))
    resumed = take(captioned, 3, data, batch_size=16, start_step=5, threads=2)
    for ours, theirs in zip(resumed, batches[5:8], strict=True):
        assert_equal(ours, theirs)
    assert batches[0].captions is not None
    assert [part.captions for part in batches[0].micro(8)] == [batches[0].captions[:8], batches[0].captions[8:]]
    assert take(captioned, 1, data.model_copy(update={"captions": False}), batch_size=16)[0].captions is None


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("repeats", [1, 3])
def test_remote_shards_give_the_same_batches_fetched_in_blocks_ahead(
    uneven: Dataset, other: Dataset, repeats: int, threads: int, tmp_path: Path
) -> None:
    store = fsspec.filesystem("memory")
    for dataset, name in ((uneven, "/uneven"), (other, "/other")):
        store.put(f"{dataset.url}/", name, recursive=True)
    try:
        data = MIXED.model_copy(update={"repeats": repeats})
        expected = take(uneven, 6, data, others=[other])
        remote = [Dataset.open("memory://uneven"), Dataset.open("memory://other")]
        options = {"others": remote[1:], "threads": threads, "cache": CacheConfig(tmp_path, 1 << 26, threads=2)}
        with loader(remote[0], data, stop_step=6, **options) as batches:
            for ours, theirs in zip(batches, expected, strict=True):
                assert_equal(ours, theirs)
            assert [source.reader.stats.direct_reads for source in batches._sources] == [0, 0]
            fetched = sum(source.reader.stats.fetched_bytes for source in batches._sources)
        assert not list(tmp_path.iterdir())
        epochs = 6 * BATCH / repeats / sum(SIZES.values())
        total = sum(shard.bytes for dataset in (uneven, other) for shard in dataset.shards("train"))
        assert fetched < 1.5 * epochs * total
        evaluated = [EvalLoader(each, "train", image_size=16, batch_size=50) for each in (remote[0], uneven)]
        for ours, theirs in zip(*evaluated, strict=True):
            assert_equal(ours, theirs)
        assert evaluated[0]._reader.stats.direct_reads == 0
        for each in evaluated:
            each.close()
    finally:
        for name in ("/uneven", "/other"):
            store.rm(name, recursive=True)


def test_a_loader_with_an_end_stops_there(uneven: Dataset) -> None:
    with loader(uneven, start_step=2, stop_step=5, threads=2) as batches:
        assert [batch.step for batch in batches] == [2, 3, 4]


def test_captions_that_are_not_there_are_a_wrong_request(uneven: Dataset) -> None:
    with pytest.raises(RequestError, match="has no captions"):
        loader(uneven, DATA.model_copy(update={"captions": True}))


def test_a_mixture_without_weights_or_with_too_many_lanes_is_a_wrong_request(uneven: Dataset, other: Dataset) -> None:
    with pytest.raises(RequestError, match=r"no weights are given for 2 datasets: set data\.mixture"):
        loader(uneven, others=[other])
    with pytest.raises(RequestError, match=r"2 weights are given for 1 dataset: take data\.mixture away"):
        loader(uneven, MIXED)
    with pytest.raises(RequestError, match="65 lanes need at least as many samples"):
        loader(uneven, MIXED.model_copy(update={"lanes": 65}), others=[other], batch_size=65)


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
    real = MixedOrder.views

    def fail(self: MixedOrder, lane: int, start: int, stop: int) -> Any:
        if start >= 16:
            raise ZeroDivisionError("in a thread")
        return real(self, lane, start, stop)

    monkeypatch.setattr(MixedOrder, "views", fail)
    batches = loader(uneven, threads=threads)
    assert [next(batches).step, next(batches).step] == [0, 1]
    with pytest.raises(ZeroDivisionError, match="in a thread"):
        next(batches)
    assert not running()


def test_closing_lets_a_consumer_in_another_thread_go(uneven: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = threading.Event()
    monkeypatch.setattr(loading, "Photograph", lambda data: hold.wait(5))
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
