"""What tells photographs apart without opening a tar: the hashes that the indexes of whole splits hold."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vitcore.data.audit.components import Components, Rows
from vitcore.data.dataset.manifest import Dataset

_READERS = 16  # index files fetched at once
_DIGEST = 32
Contents = NDArray[np.bytes_]
"""SHA-256 digests [N]; empty where one is unknown."""


class Part(NamedTuple):
    """A split among several, and the rows it has there."""

    dataset: Dataset
    split: str
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Photographs:
    """The photographs of one or several splits, numbered through; about 80 bytes each."""

    parts: tuple[Part, ...]
    stored: Contents
    """Of the bytes in the tar."""
    origins: Contents
    """Of the file they were made from."""
    phashes: NDArray[np.uint64]
    """Difference hashes; 0 where `decoded` is not."""
    decoded: NDArray[np.bool_]
    """Whether there is a difference hash: tars adopted without being decoded have none."""

    @classmethod
    def of(cls, splits: Sequence[tuple[Dataset, str]]) -> Photographs:
        """Read the hashes of splits from their indexes.

        Raises:
            RequestError: there is no such split.
            WorkError: an index is missing or damaged.
        """
        parts, tables, start = [], [], 0
        for dataset, split in splits:
            found = _columns(dataset, split)
            parts.append(Part(dataset, split, start, start + len(found)))
            tables.append(found)
            start += len(found)
        table = pa.concat_tables(tables)
        phashes = table.column("phash")
        return cls(
            tuple(parts),
            _contents(table.column("hash")),
            _contents(table.column("origin")),
            phashes.fill_null(0).to_numpy(),
            phashes.is_valid().to_numpy(),
        )

    def __len__(self) -> int:
        return len(self.phashes)

    def part_of(self, rows: Rows) -> Rows:
        """Which of the parts each row belongs to."""
        return np.searchsorted([part.stop for part in self.parts], rows, side="right")

    def keys(self, rows: Rows) -> list[str]:
        """Keys of some photographs; only the indexes of their shards are read."""
        keys = np.empty(len(rows), object)
        of = self.part_of(rows)
        for number, part in enumerate(self.parts):
            here = np.flatnonzero(of == number)
            if len(here):
                keys[here] = _keys(part, rows[here] - part.start)
        return keys.tolist()

    def contents(self) -> Rows:
        """For each photograph the first one that is the same: of equal stored bytes, or of equal original files."""
        same = Components(len(self))
        join_equal(same, self.stored)
        join_equal(same, self.origins)
        return same.names()


def join_equal(components: Components, contents: Contents) -> None:
    """Join the nodes of equal contents; unknown ones stay apart."""
    order = np.argsort(contents, kind="stable")
    ordered = contents[order]
    equal = (ordered[1:] == ordered[:-1]) & (ordered[1:] != b"")
    components.join(order[:-1][equal], order[1:][equal])


def _columns(dataset: Dataset, split: str) -> pa.Table:
    shards = dataset.shards(split)
    with ThreadPoolExecutor(_READERS) as pool:
        tables = list(pool.map(lambda shard: dataset.shard_index(shard, ("hash", "origin", "phash")), shards))
    empty = pa.table({"hash": pa.array([], pa.binary(_DIGEST)), "origin": pa.array([], pa.binary(_DIGEST))})
    return pa.concat_tables(tables) if tables else empty.append_column("phash", pa.array([], pa.uint64()))


def _contents(column: pa.ChunkedArray) -> Contents:
    known = pc.fill_null(column, bytes(_DIGEST)).combine_chunks()
    chunks = known.chunks if isinstance(known, pa.ChunkedArray) else [known]
    kind = f"S{_DIGEST}"
    pieces = [np.frombuffer(chunk.buffers()[1], kind, len(chunk), chunk.offset * _DIGEST) for chunk in chunks]
    return np.concatenate([np.empty(0, kind), *pieces])


def _keys(part: Part, samples: Rows) -> list[str]:
    """Keys of samples of one split."""
    shards = part.dataset.shards(part.split)
    ends = np.cumsum([shard.samples for shard in shards])
    of = np.searchsorted(ends, samples, side="right")
    keys = np.empty(len(samples), object)
    for number in np.unique(of):
        here = np.flatnonzero(of == number)
        column = part.dataset.shard_index(shards[number], ("key",)).column("key")
        keys[here] = column.take(samples[here] - (ends[number] - shards[number].samples)).to_pylist()
    return keys.tolist()
