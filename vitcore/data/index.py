"""The index of a split: one row a sample, by column, so that nobody needs to open a tar to know what is in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vitcore.identity import canonical_json

SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # name of the sample's members in the tar, without extension
        ("offset", pa.int64()),  # of the image member's data in the tar, in bytes
        ("size", pa.int64()),  # of the image member's data, in bytes
        ("extension", pa.string()),  # of the image member: jpg, png or webp
        ("label", pa.int64()),  # index into the manifest's classes; -1: none
        ("captions", pa.list_(pa.string())),
        ("width", pa.int32()),  # of the stored image, in pixels
        ("height", pa.int32()),
        ("hash", pa.binary(32)),  # SHA-256 of the stored image's bytes
        ("phash", pa.uint64()),  # 64-bit difference hash of the stored image
        ("group", pa.string()),  # what the split was decided by
        ("source", pa.string()),  # where the photograph came from, relative to its corpus
    ]
)
"""Columns of an ``.index.parquet`` file."""

_EAGER = ("offset", "size", "label", "width", "height")
_DIGESTED = ("key", "offset", "size", "extension", "label", "captions")


def encode(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file; equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def decode(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """A table from the bytes of a Parquet file; all columns by default."""
    return pq.ParquetFile(pa.BufferReader(data)).read(columns=None if columns is None else list(columns))


def rows_digest(table: pa.Table) -> str:
    """SHA-256 of what an index says (order, place, label and captions of every sample), whoever wrote the Parquet file.

    A version's digest covers it, so that a relabelled dataset is another version although its tars are the same.
    """
    total = hashlib.sha256()
    hashes = table.column("hash").to_pylist()
    for row, content in zip(table.select(_DIGESTED).to_pylist(), hashes, strict=True):
        total.update(canonical_json([*row.values(), content.hex()]).encode())
    return total.hexdigest()


class Index:
    """All samples of a split, in shard order and, within a shard, in tar order.

    Numbers are read at once; keys, hashes, captions and groups when they are first asked for.

    Args:
        load: reads the named columns of all shards, concatenated in shard order.
        shard_samples: samples of each shard.
    """

    def __init__(self, load: Callable[[Sequence[str]], pa.Table], shard_samples: Sequence[int]) -> None:
        self._load = load
        table = load(_EAGER)
        self.offsets: NDArray[np.int64] = table.column("offset").to_numpy()
        """Where the image's bytes begin in its shard."""
        self.sizes: NDArray[np.int64] = table.column("size").to_numpy()
        """Bytes of the image."""
        self.labels: NDArray[np.int64] = table.column("label").to_numpy()
        """Index into the manifest's classes; -1 where there is no label."""
        self.widths: NDArray[np.int32] = table.column("width").to_numpy()
        """Pixels."""
        self.heights: NDArray[np.int32] = table.column("height").to_numpy()
        """Pixels."""
        self.shard_of: NDArray[np.int32] = np.repeat(np.arange(len(shard_samples), dtype=np.int32), shard_samples)
        """Position in `Dataset.shards(split)`."""
        self.starts: NDArray[np.int64] = np.concatenate([[0], np.cumsum(shard_samples, dtype=np.int64)])
        """Shard *s* holds samples ``starts[s]`` to ``starts[s + 1]``."""

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def keys(self) -> NDArray[np.object_]:
        """Names of the samples, as `str`."""
        return self._column("key")

    @cached_property
    def extensions(self) -> NDArray[np.object_]:
        """``jpg``, ``png`` or ``webp``, as `str`."""
        return self._column("extension")

    @cached_property
    def groups(self) -> NDArray[np.object_]:
        """What the split of each sample was decided by, as `str`."""
        return self._column("group")

    @cached_property
    def sources(self) -> NDArray[np.object_]:
        """Where each photograph came from, relative to its corpus, as `str`."""
        return self._column("source")

    @cached_property
    def hashes(self) -> NDArray[np.uint8]:
        """[N, 32]: SHA-256 of each stored image's bytes; compare ``hashes[i].tobytes()``."""
        return np.frombuffer(b"".join(self._column("hash")), np.uint8).reshape(-1, 32)

    @cached_property
    def phashes(self) -> NDArray[np.uint64]:
        """64-bit difference hashes: near duplicates differ in few bits."""
        return self._column("phash")

    def captions(self, sample: int) -> tuple[str, ...]:
        """Captions of one sample; empty when it has none."""
        return tuple(self._captions[sample].as_py() or ())

    @cached_property
    def _captions(self) -> pa.ChunkedArray:
        return self._load(["captions"]).column("captions")

    def _column(self, name: str) -> NDArray[Any]:
        column: NDArray[Any] = self._load([name]).column(name).to_numpy()
        return column
