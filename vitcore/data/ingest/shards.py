"""One shard: from planned samples to a tar, its index and its stats, the same bytes whoever writes it and when.

The stats file is written last and names the job: with it the shard is finished, without it the shard is written again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pydantic import ValidationError

from vitcore import storage
from vitcore.data.corpus.listing import Reject
from vitcore.data.corpus.places import Place, fetch
from vitcore.data.dataset.index import SCHEMA, encode, rows_digest
from vitcore.data.dataset.moments import Moments
from vitcore.data.dataset.shard import Shard, Value
from vitcore.data.ingest import tar
from vitcore.data.ingest.convert import Form, Stored, UnfitError, convert, quiet
from vitcore.errors import WorkError
from vitcore.identity import canonical_json, digest

LAYOUT_VERSION = 2
"""Raised when the same samples would be stored as other bytes."""
SAMPLES = pa.schema(
    [
        ("key", pa.string()),  # unique in the dataset; derived from the content
        ("url", pa.string()),  # with the next three: where the photograph lies (`vitcore.data.corpus.places.Place`)
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("column", pa.string()),
        ("source", pa.string()),
        ("origin", pa.binary(32)),  # SHA-256 of the photograph as it lies there
        ("label", pa.int64()),  # position in the classes; -1: none
        ("class", pa.string()),  # its name
        ("captions", pa.list_(pa.string())),
        ("group", pa.string()),
        ("extra", pa.string()),
    ]
)
"""Photographs that were read once, have their place, and wait to be stored."""
SCRATCH = ".shard-"
"""Begins the names of folders that shards grow in."""
_SAME = (
    "key",
    "source",
    "label",
    "class",
    "captions",
    "group",
    "extra",
)  # with `origin`: all of the bytes follow
_READERS = 8  # photographs fetched at once from a remote store
_AHEAD = 16  # photographs held before their turn
_COUNTED = 64  # where headers are trusted, one in so many is decoded for the channel statistics
_ROWS = 1024  # rows of the plan turned into objects at a time


@dataclass(frozen=True)
class ShardJob:
    """All that is needed to write one shard, anywhere."""

    url: str
    """Of the dataset."""
    split: str
    batch: str
    """Names the ingest's new photographs: two ingests never write one file, and one ingest writes it twice alike."""
    number: int
    samples: pa.Table = field(repr=False)
    """Of the schema `SAMPLES`."""
    form: Form
    classes: int
    """How many there are."""

    @property
    def stem(self) -> str:
        """The shard's path below the dataset's URL, without extension."""
        return f"{self.split}/{self.batch}-{self.number:05d}"

    @cached_property
    def digest(self) -> str:
        """What the shard will hold; its marker must say the same."""
        return digest({"form": asdict(self.form), "classes": self.classes, "samples": samples_digest(self.samples)})


def samples_digest(samples: pa.Table) -> str:
    """SHA-256 of what the stored bytes of these samples follow from (not of where they lie)."""
    total = hashlib.sha256(f"layout {LAYOUT_VERSION}".encode())
    for name in _SAME:
        total.update(canonical_json([name, samples.column(name).to_pylist()]).encode())
    total.update(b"".join(samples.column("origin").to_pylist()))
    return total.hexdigest()


class ShardResult(Value):
    """What a written shard holds: the content of its stats file."""

    job: str
    """Digest of the job."""
    split: str
    shard: Shard
    class_counts: tuple[int, ...]
    moments: Moments
    rejects: tuple[Reject, ...]


def write_shard(job: ShardJob) -> ShardResult:
    """Write one shard, or recognise that this job has written it already.

    Raises:
        WorkError: a photograph changed or vanished since it was listed, or the shard cannot be written.
    """
    stats = storage.join(job.url, f"{job.stem}_stats.json")
    try:
        finished = _finished(job, stats)
        if finished is not None:
            storage.write(stats, finished.model_dump_json(indent=1).encode())  # as young as its use: gc spares it
            return finished
        storage.remove(stats)  # of an abandoned ingest; must never vouch for what is written now
        with quiet(), tempfile.TemporaryDirectory(prefix=_scratch_name(job), dir=_scratch(job)) as folder:
            path = Path(folder) / "shard.tar"
            with path.open("wb") as file:
                writer = _Writer(file, job)
                for sample, data in _photographs(job.samples):
                    writer.add(sample, data)
                table, result = writer.close()
            storage.put(path, storage.join(job.url, result.shard.name))
        storage.write(storage.join(job.url, result.shard.index), encode(table))
        storage.write(stats, result.model_dump_json(indent=1).encode())
    except OSError as error:
        raise WorkError(f"the shard {storage.join(job.url, job.stem)}.tar could not be written: {error}") from error
    return result


class _Writer:
    """Appends samples to a tar and keeps account of them."""

    def __init__(self, file: BinaryIO, job: ShardJob) -> None:
        self._file = file
        self._job = job
        self._hash = hashlib.sha256()
        self._at = 0
        self._thorough = replace(job.form, verify="decode")
        self._seen = 0
        self._rows: list[dict[str, Any]] = []
        self._rejects: list[Reject] = []
        self._counts = [0] * job.classes
        self._pixels = 0
        self._sums = [0, 0, 0]
        self._squares = [0, 0, 0]

    def add(self, sample: dict[str, Any], data: bytes) -> None:
        counted = self._job.form.verify == "decode" or self._seen % _COUNTED == 0
        self._seen += 1
        try:
            stored = convert(data, self._thorough if counted else self._job.form)
        except UnfitError as error:
            self._rejects.append(Reject(sample["source"], str(error)))
            return
        key = sample["key"]
        offset = self._member(f"{key}.{stored.extension}", stored.data)
        if sample["label"] >= 0:
            self._member(f"{key}.cls", str(sample["label"]).encode())
            self._counts[sample["label"]] += 1
        if sample["captions"]:  # foreign readers take the one text; all captions are in the JSON and in the index
            self._member(f"{key}.txt", sample["captions"][0].encode())
        self._member(f"{key}.json", canonical_json(_metadata(sample, stored)).encode())
        self._rows.append(_row(sample, stored, offset, data))
        if counted and stored.sums is not None and stored.squares is not None:
            self._pixels += stored.width * stored.height
            self._sums = [total + one for total, one in zip(self._sums, stored.sums, strict=True)]
            self._squares = [total + one for total, one in zip(self._squares, stored.squares, strict=True)]

    def close(self) -> tuple[pa.Table, ShardResult]:
        self._write(tar.END)
        table = pa.Table.from_pylist(self._rows, schema=SCHEMA)
        stem = self._job.stem
        shard = Shard(
            name=f"{stem}.tar",
            samples=len(self._rows),
            bytes=self._at,
            checksum=self._hash.hexdigest(),
            index=f"{stem}.index.parquet",
            index_digest=rows_digest(table),
        )
        result = ShardResult(
            job=self._job.digest,
            split=self._job.split,
            shard=shard,
            class_counts=tuple(self._counts),
            moments=Moments(
                pixels=self._pixels,
                sums=(self._sums[0], self._sums[1], self._sums[2]),
                squares=(self._squares[0], self._squares[1], self._squares[2]),
            ),
            rejects=tuple(self._rejects),
        )
        return table, result

    def _member(self, name: str, data: bytes) -> int:
        self._write(tar.header(name, len(data)))
        offset = self._at
        self._write(data)
        self._write(tar.padding(len(data)))
        return offset

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._at += len(data)


def _metadata(sample: dict[str, Any], stored: Stored) -> dict[str, Any]:
    """The sample's ``.json``: the names img2dataset uses; the corpus's own metadata never replaces them."""
    metadata: dict[str, Any] = {
        "key": sample["key"],
        "source": sample["source"],
        "sha256": sample["origin"].hex(),
        "width": stored.width,
        "height": stored.height,
        "original_width": stored.original_width,
        "original_height": stored.original_height,
    }
    if sample["group"] != sample["origin"].hex():
        metadata["group"] = sample["group"]
    if sample["class"] is not None:
        metadata["class"] = sample["class"]
    if sample["captions"]:
        metadata |= {"caption": sample["captions"][0], "captions": sample["captions"]}
    return {**json.loads(sample["extra"]), **metadata} if sample["extra"] else metadata


def _row(sample: dict[str, Any], stored: Stored, offset: int, data: bytes) -> dict[str, Any]:
    same = {name: sample[name] for name in ("key", "label", "captions", "group", "source", "origin", "extra")}
    return same | {
        "offset": offset,
        "size": len(stored.data),
        "extension": stored.extension,
        "width": stored.width,
        "height": stored.height,
        "hash": sample["origin"] if stored.data is data else hashlib.sha256(stored.data).digest(),
        "phash": stored.phash,
    }


def _finished(job: ShardJob, stats: str) -> ShardResult | None:
    """The result of this very job, if its shard stands complete."""
    try:
        result = ShardResult.model_validate(json.loads(storage.read(stats)))
        if result.job != job.digest or result.shard.name != f"{job.stem}.tar":
            return None
        if storage.size(storage.join(job.url, result.shard.name)) != result.shard.bytes:
            return None
        return result if storage.exists(storage.join(job.url, result.shard.index)) else None
    except (FileNotFoundError, ValueError, ValidationError):
        return None


def _scratch(job: ShardJob) -> Path | None:
    """Where a shard grows: beside its place, so that publishing it is a rename; anywhere when that is remote."""
    if not storage.is_local(job.url):
        return None
    folder = storage.local_path(job.url) / job.split
    folder.mkdir(parents=True, exist_ok=True)
    for abandoned in folder.glob(f"{_scratch_name(job)}*"):
        shutil.rmtree(abandoned, ignore_errors=True)  # of a killed writer of this very shard
    return folder


def _scratch_name(job: ShardJob) -> str:
    return f"{SCRATCH}{job.batch}-{job.number:05d}-"


def _photographs(samples: pa.Table) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each sample with its photograph's bytes, in order; remote ones are fetched ahead of their turn."""
    rows = (row for batch in samples.to_batches(max_chunksize=_ROWS) for row in batch.to_pylist())
    if all(storage.is_local(url) for url in samples.column("url").unique().to_pylist()):
        yield from ((row, _photograph(row)) for row in rows)
        return
    with ThreadPoolExecutor(_READERS) as pool:
        waiting: deque[tuple[dict[str, Any], Future[bytes]]] = deque()
        for row in rows:
            waiting.append((row, pool.submit(_photograph, row)))
            if len(waiting) >= _AHEAD:
                first, data = waiting.popleft()
                yield first, data.result()
        yield from ((first, data.result()) for first, data in waiting)


def _photograph(sample: dict[str, Any]) -> bytes:
    place = Place(sample["url"], sample["start"], sample["stop"], sample["column"])
    try:
        data = fetch(place)
    except OSError as error:
        raise WorkError(f"{place.url} could be listed but not read again ({error}); run the ingest again") from error
    if hashlib.sha256(data).digest() != sample["origin"]:
        raise WorkError(f"{place.url} changed while it was being ingested; run the ingest again")
    return data
