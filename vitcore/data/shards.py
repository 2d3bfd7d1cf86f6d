"""One shard: from planned samples to a tar, its index and its stats, the same bytes whoever writes it and when.

The stats file is written last and names the job: with it the shard is finished, without it the shard is written again.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pydantic import ValidationError

from vitcore import storage
from vitcore.data import tar
from vitcore.data.convert import Form, Stored, UnfitError, convert, quiet
from vitcore.data.corpus import Reject
from vitcore.data.index import SCHEMA, encode, rows_digest
from vitcore.data.manifest import Shard, Value
from vitcore.errors import WorkError
from vitcore.identity import canonical_json, digest

LAYOUT_VERSION = 1
"""Raised when the same samples would be stored as other bytes."""
_READERS = 8  # photographs fetched at once from a remote store
_AHEAD = 16  # photographs held before their turn


@dataclass(frozen=True, slots=True)
class Sample:
    """A photograph that was read once, has its place, and waits to be stored."""

    key: str
    """Unique in the dataset; derived from the content."""
    url: str
    source: str
    hash: str
    """SHA-256 of the file, in hex."""
    label: int
    """Position in the classes; -1: none."""
    label_name: str | None
    captions: tuple[str, ...]
    group: str


@dataclass(frozen=True)
class ShardJob:
    """All that is needed to write one shard, anywhere."""

    url: str
    """Of the dataset."""
    split: str
    number: int
    samples: tuple[Sample, ...] = field(repr=False)
    form: Form
    classes: int
    """How many there are."""

    @property
    def stem(self) -> str:
        """The shard's path below the dataset's URL, without extension."""
        return f"{self.split}/{self.number:05d}"

    @cached_property
    def digest(self) -> str:
        """What the shard will hold; its marker must say the same."""
        rows = [[s.key, s.source, s.hash, s.label, s.label_name, s.captions, s.group] for s in self.samples]
        return digest({"layout": LAYOUT_VERSION, "form": asdict(self.form), "classes": self.classes, "samples": rows})


class ShardResult(Value):
    """What a written shard holds: the content of its stats file."""

    job: str
    """Digest of the job."""
    split: str
    shard: Shard
    class_counts: tuple[int, ...]
    pixels: int
    sums: tuple[int, int, int]
    """Sum of each channel's 8-bit values over all pixels."""
    squares: tuple[int, int, int]
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
            return finished
        storage.remove(stats)  # of an abandoned ingest; must never vouch for what is written now
        with quiet(), tempfile.TemporaryDirectory(prefix=".shard-", dir=_scratch(job)) as folder:
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
        self._rows: list[dict[str, Any]] = []
        self._rejects: list[Reject] = []
        self._counts = [0] * job.classes
        self._pixels = 0
        self._sums = [0, 0, 0]
        self._squares = [0, 0, 0]

    def add(self, sample: Sample, data: bytes) -> None:
        try:
            stored = convert(data, self._job.form)
        except UnfitError as error:
            self._rejects.append(Reject(sample.source, str(error)))
            return
        offset = self._member(f"{sample.key}.{stored.extension}", stored.data)
        if sample.label >= 0:
            self._member(f"{sample.key}.cls", str(sample.label).encode())
            self._counts[sample.label] += 1
        if sample.captions:  # foreign readers take the one text; all captions are in the JSON and in the index
            self._member(f"{sample.key}.txt", sample.captions[0].encode())
        self._member(f"{sample.key}.json", canonical_json(_metadata(sample, stored)).encode())
        self._rows.append(_row(sample, stored, offset))
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
            pixels=self._pixels,
            sums=(self._sums[0], self._sums[1], self._sums[2]),
            squares=(self._squares[0], self._squares[1], self._squares[2]),
            rejects=tuple(self._rejects),
        )
        return table, result

    def _member(self, name: str, data: bytes) -> int:
        self._write(tar.header(name, len(data)))
        offset = self._at
        self._write(data + tar.padding(len(data)))
        return offset

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._at += len(data)


def _metadata(sample: Sample, stored: Stored) -> dict[str, Any]:
    """The sample's ``.json``: the names img2dataset uses, where it has one."""
    metadata: dict[str, Any] = {
        "key": sample.key,
        "source": sample.source,
        "sha256": sample.hash,
        "width": stored.width,
        "height": stored.height,
        "original_width": stored.original_width,
        "original_height": stored.original_height,
    }
    if sample.label_name is not None:
        metadata["class"] = sample.label_name
    if sample.captions:
        metadata |= {"caption": sample.captions[0], "captions": sample.captions}
    return metadata


def _row(sample: Sample, stored: Stored, offset: int) -> dict[str, Any]:
    return {
        "key": sample.key,
        "offset": offset,
        "size": len(stored.data),
        "extension": stored.extension,
        "label": sample.label,
        "captions": sample.captions,
        "width": stored.width,
        "height": stored.height,
        "hash": hashlib.sha256(stored.data).digest(),
        "phash": stored.phash,
        "group": sample.group,
        "source": sample.source,
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
    return folder


def _photographs(samples: Sequence[Sample]) -> Iterator[tuple[Sample, bytes]]:
    """Each sample with its file's bytes, in order; remote ones are fetched ahead of their turn."""
    if all(storage.is_local(sample.url) for sample in samples):
        yield from ((sample, _photograph(sample)) for sample in samples)
        return
    with ThreadPoolExecutor(_READERS) as pool:
        waiting: deque[tuple[Sample, Future[bytes]]] = deque()
        for sample in samples:
            waiting.append((sample, pool.submit(_photograph, sample)))
            if len(waiting) >= _AHEAD:
                first, data = waiting.popleft()
                yield first, data.result()
        yield from ((first, data.result()) for first, data in waiting)


def _photograph(sample: Sample) -> bytes:
    try:
        data = storage.read(sample.url)
    except OSError as error:
        raise WorkError(f"{sample.url} could be listed but not read again ({error}); run the ingest again") from error
    if hashlib.sha256(data).hexdigest() != sample.hash:
        raise WorkError(f"{sample.url} changed while it was being ingested; run the ingest again")
    return data
