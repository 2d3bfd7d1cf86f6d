"""The rows of a whole version in one table, and from such rows back to shard lists: what an edit works on.

A tar is never written again. Which of its samples a version has, in which split, with which label, is said by its index
alone, so deleting, relabelling and moving write a few small index files. One tar may stand in several splits' lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vitcore import storage
from vitcore.data.dataset.index import SCHEMA, encode, rows_digest
from vitcore.data.dataset.manifest import FOLDER, Dataset
from vitcore.data.dataset.shard import Shard

ROWS = SCHEMA.append(pa.field("split", pa.string())).append(pa.field("shard", pa.int32()))
"""Columns of the rows: those of an index, the split, and the position in `Rows.shards`."""
_WRITERS = 16  # index files written at once


@dataclass(frozen=True)
class Rows:
    """All samples of a version."""

    shards: tuple[tuple[str, Shard], ...]
    """Split and shard, in the version's order."""
    table: pa.Table
    """Of the schema `ROWS`, in the order of the shards."""

    @classmethod
    def of(cls, dataset: Dataset) -> Rows:
        """Read all indexes of a version."""
        shards = tuple((split, shard) for split in dataset.manifest.splits for shard in dataset.shards(split))
        with ThreadPoolExecutor(_WRITERS) as pool:
            tables = list(pool.map(lambda one: dataset.shard_index(one[1]), shards))
        parts = [
            table.append_column("split", pa.array([split] * len(table), pa.string())).append_column(
                "shard", pa.array(np.full(len(table), number, np.int32))
            )
            for number, ((split, _), table) in enumerate(zip(shards, tables, strict=True))
        ]
        return cls(shards, pa.concat_tables(parts) if parts else ROWS.empty_table())

    def revised(self, url: str, table: pa.Table, changed: NDArray[np.bool_]) -> dict[str, list[Shard]]:
        """Shard lists that hold just these rows; index files are written where they differ from what there is.

        Args:
            url: of the dataset.
            table: the rows to keep, edited, in their present order.
            changed: which of them were edited.
        """
        pieces = list(self._pieces(table, changed))
        with ThreadPoolExecutor(_WRITERS) as pool:
            listed = list(pool.map(lambda piece: _settle(url, *piece), pieces))
        lists: dict[str, list[Shard]] = {}
        for (split, _, _), shard in zip(pieces, listed, strict=True):
            lists.setdefault(split, []).append(shard)
        return lists

    def _pieces(self, table: pa.Table, changed: NDArray[np.bool_]) -> Iterator[tuple[str, Shard, pa.Table | None]]:
        """Split, shard and its rows there; None for the rows where the shard stays as it is."""
        numbers = table.column("shard").to_numpy()
        edges = np.searchsorted(numbers, np.arange(len(self.shards) + 1))
        for number, (home, shard) in enumerate(self.shards):
            start, stop = int(edges[number]), int(edges[number + 1])
            part = table.slice(start, stop - start)
            if len(part) == shard.samples and not changed[start:stop].any():
                yield home, shard, None
                continue
            for split in part.column("split").unique().to_pylist():
                yield split, shard, part.filter(pc.equal(part.column("split"), split))


def _settle(url: str, split: str, shard: Shard, rows: pa.Table | None) -> Shard:
    """The shard with these rows for its index, which is written under a name that its content gives it."""
    if rows is None:
        return shard
    table = rows.select(SCHEMA.names).cast(SCHEMA).combine_chunks()
    name = rows_digest(table)
    index = f"{FOLDER}/index/{shard.checksum[:16]}-{name[:16]}.parquet"
    storage.write(storage.join(url, index), encode(table))
    return shard.model_copy(update={"samples": len(table), "index": index, "index_digest": name})
