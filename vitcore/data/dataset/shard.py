"""A tar of a version, and the list of a split's tars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

SHARDS = pa.schema(
    [
        ("name", pa.string()),
        ("samples", pa.int64()),
        ("bytes", pa.int64()),
        ("checksum", pa.string()),
        ("index", pa.string()),
        ("index_digest", pa.string()),
    ]
)
"""Columns of a shard list."""


class Value(BaseModel):
    """Base of the stored values: frozen; fields of a newer minor release are ignored, not fatal."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class Shard(Value):
    """One tar of a version."""

    name: str
    """Relative to the dataset's URL (``train/3fa9c1d2-00000.tar``), or absolute where the tar lies elsewhere."""
    samples: int
    """Rows of its index: what an edit has left of the tar's samples."""
    bytes: int
    """Of the tar."""
    checksum: str
    """SHA-256 of the tar, in hex."""
    index: str
    """Its index file, relative to the dataset's URL."""
    index_digest: str
    """Digest of the index's rows (`vitcore.data.dataset.index.rows_digest`)."""


class ShardList(Sequence[Shard]):
    """The shards of a split, each made when it is asked for: as objects, 580,000 take a gigabyte."""

    def __init__(self, table: pa.Table) -> None:
        self._columns = {name: table.column(name).combine_chunks() for name in SHARDS.names}
        self.samples: NDArray[np.int64] = self._columns["samples"].to_numpy()
        """Of each shard."""

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> ShardList:
        """A list of shards that are there already."""
        return cls(pa.Table.from_pylist([shard.model_dump() for shard in shards], schema=SHARDS))

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, at: int) -> Shard: ...
    @overload
    def __getitem__(self, at: slice) -> list[Shard]: ...
    def __getitem__(self, at: int | slice) -> Shard | list[Shard]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        return Shard(**{name: column[at].as_py() for name, column in self._columns.items()})
