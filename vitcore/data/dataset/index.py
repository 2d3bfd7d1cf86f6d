"""The index of a split: one row a sample, by column, so that nobody needs to open a tar to know what is in it."""

from __future__ import annotations

import hashlib
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

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
        ("extension", pa.string()),  # of the image member, as spelt: jpg, png, webp; in adopted tars any (JPG)
        ("label", pa.int64()),  # index into the manifest's classes; -1: none
        ("captions", pa.list_(pa.string())),
        ("width", pa.int32()),  # of the stored image, in pixels
        ("height", pa.int32()),
        ("hash", pa.binary(32)),  # SHA-256 of the stored image's bytes
        ("phash", pa.uint64()),  # 64-bit difference hash of the stored image; null: it was not decoded
        ("group", pa.string()),  # what the split was decided by
        ("source", pa.string()),  # where the photograph came from, relative to its corpus
        ("origin", pa.binary(32)),  # SHA-256 of the photograph as the corpus had it
        ("extra", pa.string()),  # further metadata as a JSON object; null: none
    ]
)
"""Columns of an ``.index.parquet`` file."""

LARGE = 20_000_000
"""Samples of a split above which its index is not kept whole in memory."""
KEPT_BYTES = 1 << 27
"""Memory for the rows, and again for the captions, of a split that is larger than that."""

T = TypeVar("T")
_NUMBERS = ("offset", "size", "label", "width", "height")
_PLACED = ("offset", "size", "label", "hash")
_HASH = pa.binary(32)
_DIGESTED = ("key", "offset", "size", "extension", "label", "captions", "group", "source", "extra")


def encode(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file; equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def decode(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """A table from the bytes of a Parquet file; all columns by default."""
    return pq.ParquetFile(pa.BufferReader(data)).read(columns=None if columns is None else list(columns))


def rows_digest(table: pa.Table) -> str:
    """SHA-256 of what an index says (order, place, label, captions of every sample), whoever wrote the Parquet file.

    A version's digest covers it, so that a relabelled dataset is another version although its tars are the same.
    """
    total = hashlib.sha256()
    for name in _DIGESTED:
        total.update(canonical_json([name, table.column(name).to_pylist()]).encode())
    total.update(b"".join(table.column("hash").to_pylist()))
    return total.hexdigest()


class ShardRows(NamedTuple):
    """What the index says of the samples of one shard, in tar order; arrays of one length."""

    first: int
    """Row of its first sample in the split."""
    offsets: NDArray[np.int64]
    """Where the image's bytes begin in the tar."""
    sizes: NDArray[np.int64]
    """Bytes of the image."""
    labels: NDArray[np.int64]
    """Index into the manifest's classes; -1: none."""
    hashes: NDArray[np.uint8]
    """[n, 32]: SHA-256 of the stored image's bytes; compare ``hashes[i].tobytes()``."""


class Index:
    """All samples of a split, in shard order and, within a shard, in tar order. Safe to share between threads.

    Nothing is read before it is asked for. What concerns one sample (`shard`, `label`, `key`, `captions`) reads the
    index of its shard alone. A split of more than `LARGE` samples keeps only the shards read last, in bounded memory;
    the columns of a whole split (`labels`, `hashes` …) are meant for smaller ones.

    Args:
        load: reads the named columns of all shards, concatenated in shard order.
        shard_samples: samples of each shard.
        load_shard: reads the named columns of one shard, by its position; None: they are cut out of whole columns.
    """

    def __init__(
        self,
        load: Callable[[Sequence[str]], pa.Table],
        shard_samples: Sequence[int] | NDArray[np.int64],
        load_shard: Callable[[int, Sequence[str]], pa.Table] | None = None,
    ) -> None:
        self._load = load
        self._load_shard = load_shard or self._cut_out
        self.starts: NDArray[np.int64] = np.concatenate([[0], np.cumsum(shard_samples, dtype=np.int64)])
        """Shard *s* holds samples ``starts[s]`` to ``starts[s + 1]``."""
        self._bounds = array("q", self.starts.tobytes())  # which `bisect` walks five times faster than numpy's
        kept = KEPT_BYTES if len(self) > LARGE else None
        self._shards: _Kept[ShardRows] = _Kept(self._read_rows, kept)
        self._texts: _Kept[pa.ChunkedArray] = _Kept(self._read_captions, kept)
        self._lock = threading.Lock()
        self._columns: dict[str, NDArray[Any]] = {}
        self._whole: pa.Table | None = None

    def __len__(self) -> int:
        return self._bounds[-1]

    def find(self, sample: int) -> int:
        """Position in `Dataset.shards(split)` of the shard that holds a sample."""
        return bisect_right(self._bounds, sample) - 1

    def shard(self, number: int) -> ShardRows:
        """The rows of one shard; read when they are first asked for."""
        return self._shards.get(number)

    def label(self, sample: int) -> int:
        """Label of one sample; -1 when it has none."""
        rows = self.shard(self.find(sample))
        return int(rows.labels[sample - rows.first])

    def key(self, sample: int) -> str:
        """Name of one sample, read anew each time: for messages."""
        number = self.find(sample)
        return str(self._load_shard(number, ["key"]).column("key")[sample - self._bounds[number]])

    def captions(self, sample: int) -> tuple[str, ...]:
        """Captions of one sample; empty when it has none."""
        number = self.find(sample)
        return tuple(self._texts.get(number)[sample - self._bounds[number]].as_py() or ())

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each image's bytes begin in its shard."""
        return self._column("offset")

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each image."""
        return self._column("size")

    @property
    def labels(self) -> NDArray[np.int64]:
        """Index into the manifest's classes; -1 where there is no label."""
        return self._column("label")

    @property
    def widths(self) -> NDArray[np.int32]:
        """Pixels."""
        return self._column("width")

    @property
    def heights(self) -> NDArray[np.int32]:
        """Pixels."""
        return self._column("height")

    @property
    def keys(self) -> NDArray[np.object_]:
        """Names of the samples, as `str`."""
        return self._column("key")

    @property
    def extensions(self) -> NDArray[np.object_]:
        """``jpg``, ``png`` or ``webp``, as `str`."""
        return self._column("extension")

    @property
    def groups(self) -> NDArray[np.object_]:
        """What the split of each sample was decided by, as `str`."""
        return self._column("group")

    @property
    def sources(self) -> NDArray[np.object_]:
        """Where each photograph came from, relative to its corpus, as `str`."""
        return self._column("source")

    @property
    def hashes(self) -> NDArray[np.uint8]:
        """[N, 32]: SHA-256 of each stored image's bytes; compare ``hashes[i].tobytes()``."""
        return self._column("hash")

    @cached_property
    def shard_of(self) -> NDArray[np.int32]:
        """Position in `Dataset.shards(split)` of each sample's shard."""
        return np.repeat(np.arange(len(self._bounds) - 1, dtype=np.int32), np.diff(self.starts))

    def _column(self, name: str) -> NDArray[Any]:
        column = self._columns.get(name)
        if column is not None:
            return column
        with self._lock:
            if name not in self._columns:
                names = _NUMBERS if name in _NUMBERS else (name,)  # small ones together: files are read once for all
                table = self._load(names)
                self._columns |= {each: _values(table.column(each)) for each in names}
            return self._columns[name]

    def _read_rows(self, number: int) -> tuple[ShardRows, int]:
        table = self._load_shard(number, _PLACED)
        rows = ShardRows(self._bounds[number], *(_values(table.column(name)) for name in _PLACED))
        return rows, int(sum(column.nbytes for column in rows[1:]))

    def _read_captions(self, number: int) -> tuple[pa.ChunkedArray, int]:
        captions = self._load_shard(number, ["captions"]).column("captions")
        return captions, int(captions.nbytes)

    def _cut_out(self, number: int, columns: Sequence[str]) -> pa.Table:
        with self._lock:
            if self._whole is None or not set(columns) <= set(self._whole.column_names):
                known = self._whole.column_names if self._whole is not None else []
                self._whole = self._load(list(dict.fromkeys([*known, *columns])))
            return self._whole.slice(self._bounds[number], self._bounds[number + 1] - self._bounds[number])


class _Kept(Generic[T]):
    """Values by shard, read when first asked for; beyond a number of bytes those read longest ago are forgotten."""

    def __init__(self, read: Callable[[int], tuple[T, int]], most: int | None) -> None:
        self._read, self._most = read, most
        self._values: dict[int, T] = {}
        self._sizes: OrderedDict[int, int] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()

    def get(self, shard: int) -> T:
        value = self._values.get(shard)  # without the lock: the common case, at every sample
        return self._add(shard) if value is None else value

    def _add(self, shard: int) -> T:
        value, size = self._read(shard)  # two threads may read the same: better than all waiting for one
        with self._lock:
            self._total += size - self._sizes.pop(shard, 0)
            self._values[shard], self._sizes[shard] = value, size
            while self._most is not None and self._total > self._most and len(self._sizes) > 1:
                oldest, freed = self._sizes.popitem(last=False)
                self._total -= freed
                del self._values[oldest]
        return value


def _values(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column as numpy; hashes as rows of 32 bytes."""
    if column.type == _HASH:
        pieces = [
            np.frombuffer(chunk.buffers()[1], np.uint8)[32 * chunk.offset :][: 32 * len(chunk)]
            for chunk in column.chunks
        ]
        return np.concatenate(pieces or [np.empty(0, np.uint8)]).reshape(-1, 32)
    values: NDArray[Any] = column.to_numpy()
    return values
