"""Which sample stands in which slot of which step: pure functions of the seed, without I/O (design: exact, elastic,
resumable).

Training is an endless stream of steps. A step has B slots in L lanes of g = B / L; step t takes views [t·g, (t+1)·g) of
every lane, so a resume is one integer, and neither ranks nor loader threads appear in any formula.

An epoch e of a source puts its shards in an order of its own and their samples one after the other, at positions
0 … N−1. Lane i owns positions [⌊iN/L⌋, ⌊(i+1)N/L⌋), permuted within consecutive blocks of `window` samples, and its
epochs follow each other: it shows each of its samples once, then goes on with the next epoch, when other lanes may not
yet.

Randomness comes from the raw output of keyed Philox generators, whose streams are fixed across platforms and releases
of numpy (what `numpy.random.Generator` makes of them is not).
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitcore.errors import RequestError

Ints = NDArray[np.int64]

_LANE_SLOTS = 8  # fewest slots of a default lane: Mixup pairs them, and reads of a lane are local
_FLAT_SHARDS = 4096  # up to here an epoch's shards are permuted at once, in well under a millisecond
_EPOCHS_KEPT = 8


def keyed(purpose: str, *numbers: int) -> np.random.Philox:
    """The random stream that belongs to a purpose (at most 16 bytes) and a tuple of integers."""
    text = ",".join(map(str, numbers))
    key = hashlib.blake2b(text.encode(), digest_size=16, person=purpose.encode()).digest()
    return np.random.Philox(key=int.from_bytes(key, "little"))


def default_lanes(batch_size: int) -> int:
    """Lanes of a batch when the recipe names none: its largest divisor that leaves a lane at least 8 slots, or 1."""
    return next((batch_size // g for g in range(_LANE_SLOTS, batch_size + 1) if batch_size % g == 0), 1)


def resolve_lanes(batch_size: int, *, samples: int, world: int = 1, lanes: int | None = None) -> int:
    """The number of lanes a run has.

    Args:
        batch_size: B, slots of a step over all ranks.
        samples: N, samples of the split.
        world: W, ranks.
        lanes: `data.lanes`; None takes `default_lanes`.

    Raises:
        RequestError: not W ≤ L ≤ N, or L does not divide B.
    """
    chosen = default_lanes(batch_size) if lanes is None else lanes
    if chosen < 1 or batch_size % chosen:
        raise RequestError(
            f"data.lanes is {chosen}, which does not divide the batch of {batch_size}: choose a divisor of it"
        )
    if samples == 0:
        raise RequestError("the training split is empty: ingest photographs into it, or set data.train_split")
    if chosen > samples:
        raise RequestError(
            f"{chosen} lanes need at least as many samples, the training split has {samples}: "
            f"set data.lanes to a divisor of {batch_size} that is at most {samples}, or take a smaller train.batch_size"
        )
    if chosen < world:
        enough = [lanes for lanes in range(world, min(batch_size, samples) + 1) if batch_size % lanes == 0]
        remedy = f"set data.lanes to {enough[0]} or take" if enough else "take a larger train.batch_size or"
        raise RequestError(
            f"{world} workers cannot share {chosen} lanes of a batch of {batch_size}: {remedy} fewer workers"
        )
    return chosen


def rank_lanes(rank: int, size: int, lanes: int) -> range:
    """Lanes of a rank: [⌊rL/W⌋, ⌊(r+1)L/W⌋). Every lane has one rank, and ranks differ by one lane at most."""
    return range(rank * lanes // size, (rank + 1) * lanes // size)


def rank_slots(size: int, lanes: int, lane_size: int) -> int:
    """Slots of every rank, ⌈L/W⌉·g: those with fewer lanes are padded, so that shapes are equal everywhere."""
    return math.ceil(lanes / size) * lane_size


class LaneOrder:
    """The sample order of one source. Safe to ask from several threads.

    Any question costs about the same anywhere in the stream: the shard order of the epochs around it and the
    permutation of the windows around it are computed on the first question and kept.

    Args:
        shard_sizes: samples of each shard, in index order.
        lanes: L, at most the number of samples.
        window: samples of a lane shuffled together.
        seed: `train.seed`.
        source: number of the source in a mixture.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int] | Ints,
        *,
        lanes: int,
        window: int,
        seed: int,
        source: int = 0,
    ) -> None:
        self._shards = _Shards(np.asarray(shard_sizes, np.int64))
        self.samples = self._shards.total
        if not 1 <= lanes <= self.samples:
            raise RequestError(f"{lanes} lanes cannot share {self.samples} samples: set data.lanes between 1 and that")
        self.lanes = lanes
        self.window = window
        self._seed = seed
        self._source = source
        self._lock = threading.Lock()
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._windows: dict[int, tuple[int, int, Ints]] = {}

    def run(self, lane: int, start: int, stop: int) -> tuple[Ints, Ints]:
        """Epochs and index rows of samples [start, stop) of a lane, counted over all its epochs."""
        owned = self._positions(lane)
        first, length = owned.start, len(owned)
        epochs, rows = np.empty(stop - start, np.int64), np.empty(stop - start, np.int64)
        at = start
        while at < stop:
            epoch, inside = divmod(at, length)
            block, offset = divmod(inside, self.window)
            size = min(self.window, length - block * self.window)
            count = min(size - offset, stop - at)
            with self._lock:
                within = self._window(lane, epoch, block, size)[offset : offset + count]
                part = slice(at - start, at - start + count)
                epochs[part] = epoch
                rows[part] = self._epoch(epoch).rows(first + block * self.window + within)
            at += count
        return epochs, rows

    def span(self, lane: int, sample: int) -> tuple[int, int, int]:
        """Lane, epoch and number of the window that a lane's sample, counted over all its epochs, lies in."""
        epoch, inside = divmod(sample, len(self._positions(lane)))
        return lane, epoch, inside // self.window

    def next_span(self, span: tuple[int, int, int]) -> tuple[int, int, int]:
        """The window that a lane shows after one of its windows."""
        lane, epoch, block = span
        last = (block + 1) * self.window >= len(self._positions(lane))
        return (lane, epoch + 1, 0) if last else (lane, epoch, block + 1)

    def turns(self, span: tuple[int, int, int]) -> range:
        """Which of its lane's samples, counted over all epochs, a window shows."""
        lane, epoch, block = span
        length = len(self._positions(lane))
        first = block * self.window
        return range(epoch * length + first, epoch * length + min(first + self.window, length))

    def window_rows(self, lane: int, epoch: int, block: int) -> Ints:
        """Index rows of a window in the order of their positions: a few runs of neighbouring rows, not permuted."""
        positions = self._positions(lane)[block * self.window : (block + 1) * self.window]
        with self._lock:
            return self._epoch(epoch).stretch(positions)

    def _positions(self, lane: int) -> range:
        """Positions of an epoch that a lane owns."""
        return range(lane * self.samples // self.lanes, (lane + 1) * self.samples // self.lanes)

    def _window(self, lane: int, epoch: int, block: int, size: int) -> Ints:
        kept = self._windows.get(lane)
        if kept is None or kept[:2] != (epoch, block):
            kept = epoch, block, _permutation(size, "vit.window", self._seed, self._source, epoch, lane, block)
            self._windows[lane] = kept  # only the newest: a lane moves forward
        return kept[2]

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            self._epochs[epoch] = _Epoch(self._shards, self._seed, self._source, epoch)
            if len(self._epochs) > _EPOCHS_KEPT:
                self._epochs.popitem(last=False)
        self._epochs.move_to_end(epoch)
        return self._epochs[epoch]


class _Shards:
    """What all epochs share: sizes, and the hands that shards are dealt into, one by one in turn.

    Permuting 580,000 shards whole would cost each rank 50 ms an epoch and a resume. So beyond a few thousand, about √n
    hands of √n shards are permuted, then the shards within those hands that are asked for. Below, there is one hand.
    """

    def __init__(self, sizes: Ints) -> None:
        self.sizes = sizes
        self.starts = np.cumsum(sizes) - sizes
        self.total = int(sizes.sum())
        self.hands = 1 if len(sizes) <= _FLAT_SHARDS else math.isqrt(len(sizes))
        padded = np.zeros(math.ceil(len(sizes) / self.hands) * self.hands, np.int64)
        padded[: len(sizes)] = sizes
        self.hand_totals: Ints = padded.reshape(-1, self.hands).sum(0)


class _Epoch:
    """One epoch's order of shards, and from a position in it to an index row."""

    def __init__(self, shards: _Shards, *key: int) -> None:
        self._shards = shards
        self._key = key
        self._hands = _permutation(shards.hands, "vit.hands", *key)
        self._ends = np.cumsum(shards.hand_totals[self._hands])
        self._dealt: dict[int, tuple[Ints, Ints]] = {}

    def rows(self, positions: Ints) -> Ints:
        place = np.searchsorted(self._ends, positions, side="right")
        rows = np.empty(len(positions), np.int64)
        for hand in set(place.tolist()):
            members, ends = self._hand(hand)
            here = place == hand
            nth = np.searchsorted(ends, positions[here], side="right")
            chosen = members[nth]
            rows[here] = self._shards.starts[chosen] + positions[here] - (ends[nth] - self._shards.sizes[chosen])
        return rows

    def stretch(self, positions: range) -> Ints:
        """`rows` of positions without a gap, shard by shard: much faster."""
        runs, at = [], positions.start
        while at < positions.stop:
            members, ends = self._hand(int(np.searchsorted(self._ends, at, side="right")))
            nth = int(np.searchsorted(ends, at, side="right"))
            chosen, end = int(members[nth]), int(ends[nth])
            count = min(end, positions.stop) - at
            row = int(self._shards.starts[chosen] + self._shards.sizes[chosen]) - (end - at)
            runs.append(np.arange(row, row + count, dtype=np.int64))
            at += count
        return np.concatenate(runs or [np.empty(0, np.int64)])

    def _hand(self, place: int) -> tuple[Ints, Ints]:
        """Shards of the hand at a place of this epoch, in order, and the position after each one's last sample."""
        if place not in self._dealt:
            hand = int(self._hands[place])
            shards = np.arange(hand, len(self._shards.sizes), self._shards.hands, dtype=np.int64)
            members = shards[_permutation(len(shards), "vit.shards", *self._key, hand)]
            before = int(self._ends[place] - self._shards.hand_totals[hand])
            self._dealt[place] = members, before + np.cumsum(self._shards.sizes[members])
        return self._dealt[place]


def _permutation(size: int, purpose: str, *numbers: int) -> Ints:
    keys = keyed(purpose, *numbers).random_raw(size)
    return np.argsort(np.asarray(keys), kind="stable")
