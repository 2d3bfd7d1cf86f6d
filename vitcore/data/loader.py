"""Batches for training and evaluation: read, decoded and augmented by threads, some steps ahead of their use.

Threads, not processes: decoders and resizing release the GIL, threads start at once and write straight into the batch.
Which thread does what when changes nothing, since order and augmentation are functions of the seed (`order`,
`augment`). Errors of a thread surface where the batches are consumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from torch import Tensor

from vitcore.data.assembly import Assembly, Pipeline
from vitcore.data.augment import default_resize, draw_mix, evaluation_view, training_view, view_rng
from vitcore.data.batch import Batch, Mix
from vitcore.data.manifest import Dataset
from vitcore.data.order import LaneOrder, rank_lanes, rank_slots, resolve_lanes
from vitcore.data.reader import Reader
from vitcore.errors import RequestError
from vitcore.recipe import DataConfig

_PIECE = 16  # most samples a thread takes at a time: a lane of them shares a window, thus neighbouring bytes
_EVAL_DEPTH = 3


class TrainLoader:
    """One rank's share of the endless stream of training steps. An iterator; close it, or leave its `with`.

    Args:
        dataset: an opened version.
        data: what to read and how to augment it.
        batch_size: B, slots of a step over all ranks.
        seed: `train.seed`.
        rank: this rank.
        size: W, ranks.
        start_step: first step to yield; any one costs the same.
        threads: threads that read and decode; 0 does it in the caller's thread, when it asks for a batch.
        depth: batches prepared ahead.
        source: number of the dataset in a mixture.

    Raises:
        RequestError: no such split, or lanes that fit neither batch, dataset nor ranks.
    """

    def __init__(
        self,
        dataset: Dataset,
        data: DataConfig,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        size: int = 1,
        start_step: int = 0,
        threads: int = 2,
        depth: int = 4,
        source: int = 0,
    ) -> None:
        samples = dataset.split(data.train_split).samples
        lanes = resolve_lanes(batch_size, samples=samples, world=size, lanes=data.lanes)
        self.lane_size = batch_size // lanes
        """g: slots a lane."""
        self.slots = rank_slots(size, lanes, self.lane_size)
        """S: slots of this rank, the same on every rank."""
        self.lanes = rank_lanes(rank, size, lanes)
        """Lanes of this rank."""
        self.steps_per_epoch = samples * data.repeats / batch_size
        """Steps in which every view of every sample is shown once, on average over the lanes."""
        self._data, self._seed, self._source = data, seed, source
        self._reader = Reader(dataset, data.train_split)
        sizes = [shard.samples for shard in dataset.shards(data.train_split)]
        self._order = LaneOrder(sizes, lanes=lanes, window=data.window, seed=seed, source=source, repeats=data.repeats)
        self._pipeline = Pipeline(self._plan, start_step, None, threads=threads, depth=depth)

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
        self._reader.close()

    def _plan(self, step: int) -> Assembly:
        assembly = Assembly(step, self._reader, self.slots, self.lane_size, self._data.image_size)
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
        for slot, epoch, sample, repeat in zip(
            range(lane_slot + start, lane_slot + stop), *(column.tolist() for column in views), strict=True
        ):
            rng = view_rng(self._seed, self._source, epoch, sample, repeat)
            assembly.fill(slot, sample, partial(training_view, config=self._data.augment, rng=rng))

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
        self._slots = math.ceil(most / self._batches) if self._batches else 0
        self._image_size, self._threads = image_size, threads
        self._reader = Reader(dataset, split)
        self._pipelines: list[Pipeline] = []
        self.wait_s = 0.0
        """Seconds the caller has waited for batches in the iterations that ended."""

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        pipeline = Pipeline(self._plan, 0, self._batches, threads=self._threads, depth=_EVAL_DEPTH)
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

    def _plan(self, step: int) -> Assembly:
        first = self.start + step * self._slots
        count = max(0, min(self._slots, self.stop - first))
        assembly = Assembly(step, self._reader, self._slots, 1, self._image_size)
        for begin in range(0, count, _PIECE):
            assembly.pieces.append(partial(self._fill, assembly, first, begin, min(begin + _PIECE, count)))
        assembly.pad(count)
        return assembly

    def _fill(self, assembly: Assembly, first: int, begin: int, end: int) -> None:
        for slot in range(begin, end):
            assembly.fill(slot, first + slot, partial(evaluation_view, resize=self.resize))
