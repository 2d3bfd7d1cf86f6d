"""Copies among photographs: the same content, and near copies that were resized, recompressed, brightened or greyed.

Near copies are found in two steps. All pairs of perceptual hashes within a few bits are searched (`hamming`), which
needs the indexes alone. Then both photographs of a pair are decoded and compared (`thumbnails`), since hashes are close
by chance too, the more often the more photographs there are and the simpler they are: of the pairs within 4 bits in
CIFAR-10 a third are other pictures, and so are all 80 pairs within 8 bits in Flickr8k. Turned, mirrored and strongly
cropped copies are not found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from vitcore.data.audit import hamming
from vitcore.data.audit.components import Components, Rows
from vitcore.data.audit.fingerprints import Photographs
from vitcore.data.audit.thumbnails import Thumbnails
from vitcore.data.dataset.manifest import Dataset
from vitcore.errors import WorkError
from vitcore.recipe import Config

CROWD = 1024
"""Different photographs that share one perceptual hash, above which it tells nothing: blank pages, flat colours."""
MOST_PAIRS = 1 << 25
"""Near pairs that are held at once, where all of them are needed."""
_CHUNK = 1 << 18  # pairs of photographs looked at together
PAIRS = pa.schema(
    [
        ("split", pa.string()),
        ("row", pa.int64()),  # position in the split
        ("key", pa.string()),
        ("other_split", pa.string()),
        ("other_row", pa.int64()),
        ("other_key", pa.string()),
        ("distance", pa.uint8()),  # bits
        ("similarity", pa.float32()),  # correlation of grey levels; null: not looked at
    ]
)

Progress = Callable[[int, int], None]
"""Told how much of the search is done."""


class AuditConfig(Config):
    """What counts as a near copy."""

    radius: int = Field(default=4, ge=0, le=hamming.MAX_RADIUS)
    """Bits, of 64, by which the perceptual hashes of near copies may differ, from 0 to 8."""
    confirm: bool = True
    """Decode both photographs of a pair and compare them; without, hashes that are close by chance count as copies."""
    similarity: float = Field(default=0.9, gt=0, le=1)
    """Least correlation of two photographs' grey levels (32 × 32 pixels) that confirms a near copy."""


class Near(NamedTuple):
    """Pairs of photographs that are near copies."""

    left: Rows
    right: Rows
    distance: NDArray[np.uint8]
    """Bits between their perceptual hashes."""
    similarity: NDArray[np.float32]
    """Correlation of their grey levels; NaN where they were not looked at."""

    def take(self, which: NDArray[np.bool_] | Rows) -> Near:
        """Some of them, in the order asked for."""
        return Near(self.left[which], self.right[which], self.distance[which], self.similarity[which])

    @classmethod
    def concat(cls, parts: Sequence[Near]) -> Near:
        """All pairs of several parts."""
        none = cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8), np.empty(0, np.float32))
        every = [none, *parts]
        return cls(
            np.concatenate([part.left for part in every]),
            np.concatenate([part.right for part in every]),
            np.concatenate([part.distance for part in every]),
            np.concatenate([part.similarity for part in every]),
        )

    def first(self, most: int) -> Near:
        """The first of them."""
        return Near(self.left[:most], self.right[:most], self.distance[:most], self.similarity[:most])

    def nearest_first(self) -> Near:
        """Ordered by distance, then by similarity, then by row: however they were found, the order is the same."""
        return self.take(np.lexsort((self.right, self.left, -np.nan_to_num(self.similarity), self.distance)))


@dataclass(frozen=True, eq=False)
class Buckets:
    """Photographs by perceptual hash."""

    hashes: NDArray[np.uint64]
    """Distinct ones."""
    starts: Rows
    """Hash *h* has ``rows[starts[h] : starts[h + 1]]``."""
    rows: Rows
    left_out: int
    """Photographs without a hash, or with one that too many share."""

    @classmethod
    def of(cls, photographs: Photographs, rows: Rows) -> Buckets:
        """Sort `rows`, distinct in content, by their perceptual hashes."""
        decoded = rows[photographs.decoded[rows]]
        order = np.argsort(photographs.phashes[decoded], kind="stable")
        hashes, counts = np.unique(photographs.phashes[decoded], return_counts=True)
        telling = counts <= CROWD
        kept = decoded[order][np.repeat(telling, counts)]
        starts = np.concatenate([[0], np.cumsum(counts[telling])])
        return cls(hashes[telling], starts, kept, len(rows) - len(kept))


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Copies within a dataset.

    Groups are whatever hangs together: of three photographs the first may be near the second and the second near the
    third while the first and third are not.
    """

    photographs: Photographs
    config: AuditConfig
    contents: Rows
    """[N]: for each photograph the first one of the same content."""
    groups: Rows
    """[N]: for each photograph the first one of its group of copies and near copies."""
    left_out: int
    """Photographs that were compared by content alone."""
    nearest: Near
    """The nearest pairs of different content, nearest first; at most as many as were asked for."""

    @property
    def exact(self) -> int:
        """Photographs whose content is there already."""
        return len(self.contents) - len(np.unique(self.contents))

    @property
    def near(self) -> int:
        """Further photographs that belong to the group of another one."""
        return len(self.groups) - len(np.unique(self.groups)) - self.exact

    @property
    def sizes(self) -> Rows:
        """Photographs of each group of at least two, largest first."""
        counts = np.unique(self.groups, return_counts=True)[1]
        return np.sort(counts[counts > 1])[::-1]


def duplicates(
    dataset: Dataset, config: AuditConfig | None = None, *, most: int = 1000, progress: Progress | None = None
) -> Duplicates:
    """Copies and near copies among all photographs of a dataset, whatever split they are in.

    Args:
        dataset: an opened version.
        config: what counts as a near copy.
        most: near pairs to list.
        progress: told how much of the search is done.
    """
    config = config or AuditConfig()
    photographs = Photographs.of([(dataset, split) for split in dataset.manifest.splits])
    contents = photographs.contents()
    buckets = Buckets.of(photographs, np.unique(contents))
    groups = Components(len(photographs))
    groups.join(np.arange(len(photographs)), contents)
    nearest = Near.concat([])
    for pairs in near(photographs, buckets, None, config, progress):
        groups.join(pairs.left, pairs.right)
        nearest = Near.concat([nearest, pairs]).nearest_first().first(most)
    return Duplicates(photographs, config, contents, groups.names(), buckets.left_out, nearest)


def near(
    photographs: Photographs, left: Buckets, right: Buckets | None, config: AuditConfig, progress: Progress | None
) -> Iterator[Near]:
    """Near copies among `left`, or between `left` and `right`, each pair once, in parts of bounded size."""
    with Thumbnails(photographs) if config.confirm else nullcontext() as thumbnails:
        for pairs in _candidates(left, right, config.radius, progress):
            if thumbnails is None:
                yield Near(*pairs, np.full(len(pairs.left), np.nan, np.float32))
                continue
            found = Near(*pairs, thumbnails.similarity(pairs.left, pairs.right))
            alike = found.similarity >= config.similarity
            if alike.any():
                yield found.take(alike)


def together(parts: Iterable[Near]) -> Near:
    """All parts at once.

    Raises:
        WorkError: they are too many to be held.
    """
    found, count = list[Near](), 0
    for part in parts:
        found.append(part)
        count += len(part.left)
        if count > MOST_PAIRS:
            raise WorkError(f"there are more than {MOST_PAIRS:,} pairs of near copies; ask for a smaller radius")
    return Near.concat(found)


def table(photographs: Photographs, pairs: Near) -> pa.Table:
    """Pairs by split and key, of the schema `PAIRS`."""
    splits = np.array([part.split for part in photographs.parts], object)
    starts = np.array([part.start for part in photographs.parts])
    columns: dict[str, object] = {}
    for prefix, rows in (("", pairs.left), ("other_", pairs.right)):
        parts = photographs.part_of(rows)
        columns |= {f"{prefix}split": splits[parts], f"{prefix}row": rows - starts[parts]}
        columns[f"{prefix}key"] = photographs.keys(rows)
    similarity = pa.array(pairs.similarity, mask=np.isnan(pairs.similarity))
    return pa.table({**columns, "distance": pairs.distance, "similarity": similarity}, schema=PAIRS)


def _candidates(
    left: Buckets, right: Buckets | None, radius: int, progress: Progress | None
) -> Iterator[hamming.Pairs]:
    """Pairs of photographs whose hashes are within the radius."""
    if right is not None:
        for pairs in hamming.between(left.hashes, right.hashes, radius, progress):
            yield from _members(left, right, pairs)
        return
    shared = np.flatnonzero(np.diff(left.starts) > 1)
    for one, other, distance in _members(left, left, hamming.Pairs(shared, shared, np.zeros(len(shared), np.uint8))):
        yield hamming.Pairs(one, other, distance).take(one < other)
    for pairs in hamming.within(left.hashes, radius, progress):
        for one, other, distance in _members(left, left, pairs):
            yield hamming.Pairs(np.minimum(one, other), np.maximum(one, other), distance)


def _members(left: Buckets, right: Buckets, pairs: hamming.Pairs) -> Iterator[hamming.Pairs]:
    """Every photograph of one hash with every one of the other, in parts of about `_CHUNK` pairs."""
    of_left = np.diff(left.starts)[pairs.left]
    of_right = np.diff(right.starts)[pairs.right]
    if not len(pairs.left):
        return
    ends = np.cumsum(of_left * of_right)
    edges = np.unique(np.searchsorted(ends, np.arange(0, ends[-1], _CHUNK), side="right"))
    for start, stop in zip(edges, [*edges[1:], len(ends)], strict=True):
        part = slice(start, stop)
        sizes = of_left[part] * of_right[part]
        pair = np.repeat(np.arange(start, stop), sizes)
        place = np.arange(len(pair)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        yield hamming.Pairs(
            left.rows[left.starts[pairs.left[pair]] + place // of_right[pair]],
            right.rows[right.starts[pairs.right[pair]] + place % of_right[pair]],
            pairs.distance[pair],
        )
