"""Several datasets trained on as one: whose sample stands where, and what the classes are called.

A round of Σ weights samples shows as many of each dataset as its weight says, spread evenly. Every lane goes through
rounds without end, each from a place of its own: together the lanes of a step cover neighbouring places, so that every
step, and every rank's part of it, holds the datasets nearly in their shares.

Each dataset keeps its own order (`order`), of which a lane has shown a number of samples that follows from the step
alone: a resume is one integer here too. A mixture has no epoch; each of its datasets has.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import ceil, gcd
from typing import NamedTuple

import numpy as np

from vitcore.data.dataset.manifest import Dataset
from vitcore.data.loading.assembly import Sample
from vitcore.data.loading.operations import below
from vitcore.data.loading.order import Ints, LaneOrder
from vitcore.data.reading.ahead import LookAhead
from vitcore.data.reading.blocks import BlockCache
from vitcore.data.reading.reader import Reader
from vitcore.errors import RequestError
from vitcore.recipe import DataConfig


class MixedViews(NamedTuple):
    """What a run of a lane's views shows; int64 arrays of one length."""

    sources: Ints
    """Number of the dataset."""
    turns: Ints
    """Which of the lane's samples of that dataset it is, counted over all epochs."""
    epochs: Ints
    """Epoch of the dataset, from 0."""
    samples: Ints
    """Row of the sample in its split's index."""
    repeats: Ints
    """Which of the sample's repeats it is, from 0 (repeated augmentation)."""


def spread(weights: Sequence[int]) -> Ints:
    """The datasets of a round in turn: each as often as its weight says, as evenly as can be (smooth round robin)."""
    shares = np.asarray(weights, np.int64) // gcd(*weights)
    total, credit = int(shares.sum()), np.zeros(len(shares), np.int64)
    turns = np.empty(total, np.int64)
    for turn in range(total):
        credit += shares
        turns[turn] = chosen = int(credit.argmax())
        credit[chosen] -= total
    return turns


class MixedOrder:
    """The order of the samples of one or several datasets. Safe to ask from several threads.

    Args:
        orders: of each dataset, all with the same lanes.
        weights: samples of each in a round.
        lane_size: g, slots a lane.
        repeats: R; views v·R … v·R + R−1 of a lane show its sample v.
    """

    def __init__(self, orders: Sequence[LaneOrder], weights: Sequence[int], *, lane_size: int, repeats: int) -> None:
        self._orders = tuple(orders)
        self._lane_size, self._repeats = lane_size, repeats
        self._round = spread(weights)
        shown = self._round[:, None] == np.arange(len(orders))
        self._before: Ints = np.concatenate([np.zeros((1, len(orders)), np.int64), shown.cumsum(0)])  # [place, dataset]

    def views(self, lane: int, start: int, stop: int) -> MixedViews:
        """Views [start, stop) of a lane."""
        first, last = start // self._repeats, (stop - 1) // self._repeats + 1
        sources = self._round[(np.arange(first, last) + self._rotation(lane)) % len(self._round)]
        turns, epochs, samples = np.empty((3, last - first), np.int64)
        ends = zip(self._shown(lane, first), self._shown(lane, last), strict=True)
        for source, (low, high) in enumerate(ends):
            if low < high:
                here = sources == source
                turns[here] = np.arange(low, high)
                epochs[here], samples[here] = self._orders[source].run(lane, low, high)
        views = np.arange(start, stop, dtype=np.int64)
        place = views // self._repeats - first
        return MixedViews(sources[place], turns[place], epochs[place], samples[place], views % self._repeats)

    def ends(self, lanes: Sequence[int], stop_step: int | None) -> list[int | None]:
        """How many samples of each dataset the lanes show at most before a step; None for a run without an end."""
        if stop_step is None:
            return [None] * len(self._orders)
        samples = ceil(stop_step * self._lane_size / self._repeats)
        return [max(shown, default=0) for shown in zip(*(self._shown(lane, samples) for lane in lanes), strict=True)]

    def _rotation(self, lane: int) -> int:
        return lane * self._lane_size // self._repeats

    def _shown(self, lane: int, samples: int) -> list[int]:
        """How many of a lane's first samples are of each dataset."""
        begin = self._rotation(lane) % len(self._round)
        rounds, rest = divmod(begin + samples, len(self._round))
        shown: list[int] = (rounds * self._before[-1] + self._before[rest] - self._before[begin]).tolist()
        return shown


class Mixture:
    """One or several datasets and their weights; classes are matched by name.

    Args:
        datasets: opened versions; the first one's classes come first.
        weights: `data.mixture`; empty for one dataset.

    Raises:
        RequestError: as many weights as datasets are needed.
    """

    def __init__(self, datasets: Sequence[Dataset], weights: Sequence[int] = ()) -> None:
        alone = len(datasets) == 1
        if alone and not weights:
            weights = (1,)
        if len(weights) != len(datasets):
            given = {0: "no weights are", 1: "1 weight is"}.get(len(weights), f"{len(weights)} weights are")
            remedy = "take data.mixture away" if alone else "set data.mixture to one whole number for each"
            raise RequestError(f"{given} given for {len(datasets)} dataset{'' if alone else 's'}: {remedy}")
        self.datasets = tuple(datasets)
        self.weights = tuple(weights)
        names = (name for dataset in datasets for name in dataset.manifest.classes)
        self.classes: tuple[str, ...] = tuple(dict.fromkeys(names))
        """Of all datasets: the first one's in their order, then those that only later ones have."""

    @property
    def is_single(self) -> bool:
        """Whether there is one dataset only, which then has epochs."""
        return len(self.datasets) == 1

    def orders(self, data: DataConfig, *, lanes: int, seed: int) -> list[LaneOrder]:
        """The order of each dataset's training split.

        Raises:
            RequestError: a dataset has no such split.
        """
        sizes = (dataset.shard_list(data.train_split).samples for dataset in self.datasets)
        return [
            LaneOrder(each, lanes=lanes, window=data.window, seed=seed, source=source)
            for source, each in enumerate(sizes)
        ]

    def labels(self, source: int) -> Ints:
        """From a label of a dataset to the mixture's."""
        place = {name: number for number, name in enumerate(self.classes)}
        return np.array([place[name] for name in self.datasets[source].manifest.classes], np.int64)

    def class_counts(self, split: str) -> list[int]:
        """Samples of each class among as many as the splits hold together, drawn as the weights say."""
        infos = [dataset.split(split) for dataset in self.datasets]
        counts = np.zeros(len(self.classes))
        drawn = sum(info.samples for info in infos) / sum(self.weights)
        for source, (info, weight) in enumerate(zip(infos, self.weights, strict=True)):
            if info.class_counts:
                counts[self.labels(source)] += np.array(info.class_counts) * (weight * drawn / max(1, info.samples))
        return [int(count) for count in counts.round()]


class Source:
    """A dataset of a mixture as its lanes read it. Safe to share between threads; close its reader.

    Args:
        mixture: what it is a part of.
        number: which part.
        data: which split to read, and what of it.
        order: whose sample is whose turn.
        stop: turn before which the run ends in every lane; None: it does not.
        cache: shared by all sources.

    Raises:
        RequestError: no captions where they are asked for.
    """

    def __init__(
        self,
        mixture: Mixture,
        number: int,
        data: DataConfig,
        *,
        order: LaneOrder,
        stop: int | None = None,
        cache: BlockCache,
    ) -> None:
        dataset = mixture.datasets[number]
        if data.captions:
            dataset.require("captions")
        self.reader = Reader(dataset, data.train_split, cache=cache)
        """Its split."""
        self._number = number
        self._ahead = LookAhead(order, self.reader, uses=data.repeats, stop=stop)
        self._labels: list[int] = mixture.labels(number).tolist()

    def sample(self, row: int, draw: np.random.Philox | None = None) -> Sample:
        """What is known of a sample.

        Args:
            row: in the index of its split.
            draw: what one of its captions is drawn with; None: no caption.
        """
        index, caption = self.reader.index, ""
        label = index.label(row)
        if draw is not None and (captions := index.captions(row)):
            caption = captions[below(len(captions), np.random.Generator(draw))]
        return Sample(row, self._labels[label] if label >= 0 else -1, partial(index.key, row), self._number, caption)

    def read(self, lane: int, turn: int, row: int) -> bytes:
        """The stored bytes of the sample that a lane shows at a turn.

        Raises:
            BadSampleError: they are not there, or not those that were indexed.
            WorkError: a remote store does not answer.
        """
        return self.reader.read(row, self._ahead.advance(lane, turn))
