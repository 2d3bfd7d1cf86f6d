"""Batches for training and evaluation: read, decoded and augmented by threads, some steps ahead of their use.

Threads, not processes: decoders and resizing release the GIL, threads start at once and write straight into the batch.
Which thread does what when changes nothing, since order and augmentation are functions of the seed (`order`,
`mixture`, `augment`). Errors of a thread surface where the batches are consumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor

from vitcore.data.dataset.manifest import Dataset
from vitcore.data.loading.assembly import Assembly, Layout, Pipeline, Sample
from vitcore.data.loading.augment import View, default_resize, draw_mix, evaluation_view, training_views, view_rng
from vitcore.data.loading.batch import Batch, Mix
from vitcore.data.loading.mixture import MixedOrder, Mixture, Source
from vitcore.data.loading.order import keyed, rank_lanes, rank_slots, resolve_lanes
from vitcore.data.reading.ahead import RangeAhead
from vitcore.data.reading.blocks import BlockCache, CacheConfig
from vitcore.data.reading.decode import Photograph
from vitcore.data.reading.reader import Reader
from vitcore.errors import RequestError
from vitcore.recipe import DataConfig

_PIECE = 16  # most samples a thread takes at a time: a lane of them shares a window, thus neighbouring bytes
_EVAL_DEPTH = 3
_CACHE = CacheConfig()


class TrainLoader:
    """One rank's share of the stream of training steps, endless or not. An iterator; close it, or leave its `with`.

    Args:
        dataset: an opened version.
        data: what to read and how to augment it.
        others: datasets mixed in, by the weights of `data.mixture`.
        batch_size: B, slots of a step over all ranks.
        seed: `train.seed`.
        rank: this rank.
        size: W, ranks.
        start_step: first step to yield; any one costs the same.
        stop_step: step before which it ends; None: never.
        threads: threads that read and decode; 0 does it in the caller's thread, when it asks for a batch.
        depth: batches prepared ahead.
        cache: limits of the cache of remote shards.

    Raises:
        RequestError: no such split, no captions where they are asked for, datasets without weights, or lanes that fit
            neither batch, datasets nor ranks.
    """

    def __init__(
        self,
        dataset: Dataset,
        data: DataConfig,
        *,
        others: Sequence[Dataset] = (),
        batch_size: int,
        seed: int,
        rank: int = 0,
        size: int = 1,
        start_step: int = 0,
        stop_step: int | None = None,
        threads: int = 2,
        depth: int = 4,
        cache: CacheConfig = _CACHE,
    ) -> None:
        mixture = Mixture([dataset, *others], data.mixture)
        fewest = min(each.split(data.train_split).samples for each in mixture.datasets)
        lanes = resolve_lanes(batch_size, samples=fewest, world=size, lanes=data.lanes)
        self.lane_size = batch_size // lanes
        """g: slots a lane."""
        self.slots = rank_slots(size, lanes, self.lane_size)
        """S: slots of this rank, the same on every rank."""
        self.lanes = rank_lanes(rank, size, lanes)
        """Lanes of this rank."""
        self._data, self._seed = data, seed
        further = [(view.image_size or data.image_size, view.augment) for view in data.views for _ in range(view.count)]
        sizes, self._augments = zip((data.image_size, data.augment), *further, strict=True)
        self._layout = Layout(self.slots, self.lane_size, sizes, not mixture.is_single, data.captions)
        self._cache = BlockCache(cache)
        orders = mixture.orders(data, lanes=lanes, seed=seed)
        self._order = MixedOrder(orders, mixture.weights, lane_size=self.lane_size, repeats=data.repeats)
        self._sources = [
            Source(mixture, number, data, order=order, stop=stop, cache=self._cache)
            for number, (order, stop) in enumerate(zip(orders, self._order.ends(self.lanes, stop_step), strict=True))
        ]
        self._pipeline = Pipeline(self._plan, start_step, stop_step, threads=threads, depth=depth)

    @property
    def wait_s(self) -> float:
        """Seconds the caller has waited for batches so far."""
        return self._pipeline.wait_s

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._pipeline)

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads, wherever they are, and close the files."""
        self._pipeline.close()
        for source in self._sources:
            source.reader.close()
        self._cache.close()

    def _plan(self, step: int) -> Assembly:
        assembly = Assembly(step, self._layout)
        for place, lane in enumerate(self.lanes):
            for start in range(0, self.lane_size, _PIECE):
                stop = min(start + _PIECE, self.lane_size)
                assembly.pieces.append(partial(self._fill, assembly, place * self.lane_size, lane, start, stop))
        assembly.pad(len(self.lanes) * self.lane_size)
        assembly.mix = partial(self._mix, step)
        return assembly

    def _fill(self, assembly: Assembly, lane_slot: int, lane: int, start: int, stop: int) -> None:
        before = assembly.step * self.lane_size
        views = self._order.views(lane, before + start, before + stop)
        latest = _Latest()
        for slot, number, turn, epoch, row, repeat in zip(
            range(lane_slot + start, lane_slot + stop), *(column.tolist() for column in views), strict=True
        ):
            key = (self._seed, number, epoch, row, repeat)
            sample = self._sources[number].sample(row, keyed("vit.caption", *key) if self._data.captions else None)
            assembly.fill(slot, sample, partial(self._render, latest, lane, turn, key))

    def _render(
        self, latest: _Latest, lane: int, turn: int, key: tuple[int, int, int, int, int], places: Sequence[Tensor]
    ) -> None:
        _, number, _, row, _ = key
        photograph = latest.photograph((number, turn), self._sources[number].read(lane, turn, row))
        rngs = (view_rng(*key, view) for view in range(len(places)))
        training_views(photograph, list(map(View, places, self._augments, rngs)))

    def _mix(self, step: int, weights_S: Tensor) -> Mix | None:
        return draw_mix(
            self._data.augment,
            seed=self._seed,
            step=step,
            lanes=self.lanes,
            weights_S=weights_S,
            lane_size=self.lane_size,
            size=self._data.image_size,
        )


class EvalLoader:
    """A contiguous range of a split, every sample exactly once, in index order; as many batches on every rank.

    Batches of a rank have one shape: its samples are spread evenly over as few batches as `batch_size` allows, and the
    slots left over have weight 0. Can be iterated again and again.

    Args:
        dataset: an opened version.
        split: its name.
        image_size: side of the centre crop, in pixels.
        resize: short side before the crop; default: image size ÷ 0.875.
        batch_size: most slots of a batch.
        rank: this rank reads [⌊rN/W⌋, ⌊(r+1)N/W⌋) …
        size: … of W ranks.
        start: with `stop`, an explicit range instead of the rank's.
        stop: first row not to read.
        threads: threads that read and decode; 0 does it in the caller's thread.
        cache: limits of the cache of remote shards.

    Raises:
        RequestError: no such split, or a crop larger than what it is cut from.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        image_size: int,
        resize: int | None = None,
        batch_size: int,
        rank: int = 0,
        size: int = 1,
        start: int | None = None,
        stop: int | None = None,
        threads: int = 2,
        cache: CacheConfig = _CACHE,
    ) -> None:
        total = dataset.split(split).samples
        self.resize = default_resize(image_size) if resize is None else resize
        """Short side before the crop, in pixels."""
        if self.resize < image_size:
            raise RequestError(f"a crop of {image_size} does not fit in a short side of {resize}: raise eval.resize")
        if start is None and stop is None:
            self.start, self.stop = rank * total // size, (rank + 1) * total // size
            most = math.ceil(total / size)
        else:
            self.start, self.stop = max(0, start or 0), total if stop is None else min(stop, total)
            most = max(0, self.stop - self.start)
        self._batches = math.ceil(most / batch_size)
        slots = math.ceil(most / self._batches) if self._batches else 0
        self._layout, self._threads = Layout(slots, 1, (image_size,)), threads
        self._reader = Reader(dataset, split, cache=cache)
        self._pipelines: list[Pipeline] = []
        self.wait_s = 0.0
        """Seconds the caller has waited for batches in the iterations that ended."""

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        plan = partial(self._plan, RangeAhead(self._reader, self.start, self.stop))
        pipeline = Pipeline(plan, 0, self._batches, threads=self._threads, depth=_EVAL_DEPTH)
        self._pipelines.append(pipeline)
        try:
            yield from pipeline
        finally:
            pipeline.close()
            self._pipelines.remove(pipeline)
            self.wait_s += pipeline.wait_s

    def __enter__(self) -> EvalLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads of iterations that were left half-way, and close the files."""
        for pipeline in list(self._pipelines):
            pipeline.close()
        self._reader.close()

    def _plan(self, ahead: RangeAhead, step: int) -> Assembly:
        first = self.start + step * self._layout.slots
        count = max(0, min(self._layout.slots, self.stop - first))
        assembly = Assembly(step, self._layout)
        for begin in range(0, count, _PIECE):
            end = min(begin + _PIECE, count)
            assembly.pieces.append(partial(self._fill, ahead, assembly, first, begin, end))
        assembly.pad(count)
        return assembly

    def _fill(self, ahead: RangeAhead, assembly: Assembly, first: int, begin: int, end: int) -> None:
        index = self._reader.index
        for slot in range(begin, end):
            row = first + slot
            assembly.fill(
                slot, Sample(row, index.label(row), partial(index.key, row)), partial(self._render, ahead, row)
            )

    def _render(self, ahead: RangeAhead, row: int, places: Sequence[Tensor]) -> None:
        evaluation_view(Photograph(self._reader.read(row, ahead.advance(row))), places[0], self.resize)


class _Latest:
    """The photograph a piece shows: the repeats of a sample follow each other, and it is decoded once for them."""

    def __init__(self) -> None:
        self._of: tuple[int, int] | None = None
        self._photograph: Photograph | None = None

    def photograph(self, of: tuple[int, int], data: bytes) -> Photograph:
        if self._of != of or self._photograph is None:
            self._photograph, self._of = Photograph(data), of
        return self._photograph
