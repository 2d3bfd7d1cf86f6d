"""One tar that others wrote, read once from front to back: its samples, what they show, its checksum.

What is found is kept beside the dataset, in a table and, written last, a JSON that says that the table is whole. So a
tar that was read once is never read again while its name, size and time of change stay the same.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from vitcore import storage
from vitcore.data.corpus.foreign import SAMPLES, Sample, samples
from vitcore.data.corpus.img2dataset import not_downloaded, unlisted
from vitcore.data.corpus.listing import Reject
from vitcore.data.corpus.tarsets import Tar
from vitcore.data.corpus.tarwalk import Stream
from vitcore.data.dataset.manifest import FOLDER
from vitcore.data.dataset.shard import Value
from vitcore.data.ingest.convert import Form, Stored, UnfitError, convert, quiet
from vitcore.data.ingest.shards import SCRATCH
from vitcore.data.ingest_config import IngestConfig
from vitcore.errors import WorkError
from vitcore.identity import digest

VERSION = 1
"""Raised when the same tar would be understood otherwise."""
_MOMENTS = [pa.field(name, pa.int64()) for name in ("sum_r", "sum_g", "sum_b", "square_r", "square_g", "square_b")]
FOUND = pa.schema(
    [
        *SAMPLES,
        ("width", pa.int32()),  # of the image as it lies there, in pixels
        ("height", pa.int32()),
        ("hash", pa.binary(32)),
        ("phash", pa.uint64()),
        ("pixels", pa.int64()),  # that the next six are sums over; null: the image was not decoded
        *_MOMENTS,
    ]
)
"""Columns of what is known of a tar: a row a sample that can be shown."""
_BATCH = 2048  # samples held before they are written down


@dataclass(frozen=True)
class AdoptJob:
    """All that is needed to look at one tar, anywhere."""

    url: str
    """Of the dataset."""
    tar: Tar
    config: IngestConfig

    @property
    def name(self) -> str:
        """What the dataset calls the tar: its path below the dataset's URL, or its whole URL if it lies elsewhere."""
        return self.tar.url.removeprefix(f"{self.url}/")

    @cached_property
    def digest(self) -> str:
        """What will be found; the marker is named after it."""
        config = self.config
        meaning = config.tar.model_dump(mode="json", exclude={"classes"})
        tar = [self.name, self.tar.size, self.tar.stamp, self.tar.split]
        return digest([VERSION, tar, meaning, config.verify, config.max_pixels])

    @property
    def path(self) -> str:
        """Where what is found is kept, without extension."""
        return storage.join(self.url, FOLDER, "adopt", self.digest)


class AdoptedShard(Value):
    """What is known of a tar: the content of its marker."""

    job: str
    """Digest of the job."""
    name: str
    bytes: int
    checksum: str
    """SHA-256 of the tar, in hex."""
    samples: int
    """That can be shown."""
    labels: tuple[str, ...]
    """Every label that occurs, as the tar spells it."""
    captioned: int
    """Samples with captions."""
    rejects: tuple[Reject, ...]
    absent: dict[str, int]
    """Photographs that never came into the tar, by reason."""


def adopt_shard(job: AdoptJob) -> AdoptedShard:
    """Look at one tar, or recall what was seen before. Nothing but the dataset's own folder is written to.

    Raises:
        RequestError: it is compressed.
        WorkError: it cannot be read, or what was found cannot be written.
    """
    try:
        finished = _finished(job)
        if finished is not None:
            return finished
        with quiet(), tempfile.TemporaryDirectory(prefix=SCRATCH, dir=_scratch(job)) as folder:
            path = Path(folder) / "found.parquet"
            result = _survey(job, path)
            storage.put(path, f"{job.path}.parquet")
        storage.write(f"{job.path}.json", result.model_dump_json(indent=1).encode())
    except OSError as error:
        raise WorkError(f"the tar {job.tar.url} could not be adopted: {error}") from error
    return result


def _scratch(job: AdoptJob) -> Path | None:
    """Where the table grows: beside its place, so that publishing it is a rename; anywhere when that is remote."""
    if not storage.is_local(job.url):
        return None
    folder = storage.local_path(job.path).parent
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _survey(job: AdoptJob, path: Path) -> AdoptedShard:
    """Walk over the tar; rows are written down as they come: a long tar takes little more memory than a short one."""
    rejects: list[Reject] = []
    labels: dict[str, None] = {}
    keys: list[str] = []
    captioned = 0
    with Stream(job.tar.url, job.tar.size, checksum=True) as stream, pq.ParquetWriter(path, FOUND) as writer:
        rows: list[dict[str, Any]] = []
        for found in _examined(stream, job):
            if isinstance(found, Reject):
                rejects.append(found)
                continue
            rows.append(found)
            keys.append(found["key"])
            captioned += bool(found["captions"])
            if found["class"] is not None:
                labels[found["class"]] = None
            if len(rows) == _BATCH:
                writer.write_table(pa.Table.from_pylist(rows, schema=FOUND))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema=FOUND))
        checksum = stream.digest()
    return AdoptedShard(
        job=job.digest,
        name=job.name,
        bytes=job.tar.size,
        checksum=checksum,
        samples=len(keys),
        labels=tuple(sorted(labels)),
        captioned=captioned,
        rejects=(*rejects, *unlisted(job.tar, keys, rejects)),
        absent=dict(not_downloaded(job.tar)),
    )


def _examined(stream: Stream, job: AdoptJob) -> Iterator[dict[str, Any] | Reject]:
    """The tar's samples as rows of `FOUND`, as far as their images can be shown."""
    form = Form(resize=None, quality=job.config.quality, max_pixels=job.config.max_pixels, verify=job.config.verify)
    for found in samples(stream, job.tar, job.config.tar, images=True):
        if isinstance(found, Reject):
            yield found
            continue
        try:
            yield _row(found, convert(found.image.data, form))
        except UnfitError as error:
            yield Reject(f"{job.tar.name}/{found.key}", str(error))


def _row(sample: Sample, seen: Stored) -> dict[str, Any]:
    looked = seen.sums is not None and seen.squares is not None
    moments = [*(seen.sums or ()), *(seen.squares or ())] if looked else [None] * len(_MOMENTS)
    return sample.row() | {
        "width": seen.original_width,
        "height": seen.original_height,
        "hash": hashlib.sha256(sample.image.data).digest(),
        "phash": seen.phash,
        "pixels": seen.width * seen.height if looked else None,
        **{field.name: moment for field, moment in zip(_MOMENTS, moments, strict=True)},
    }


def _finished(job: AdoptJob) -> AdoptedShard | None:
    """What was found before; a file of unknown time of change may be another by now."""
    if not job.tar.stamp:
        return None
    try:
        result = AdoptedShard.model_validate(json.loads(storage.read(f"{job.path}.json")))
    except (FileNotFoundError, ValueError, ValidationError):
        return None
    return result if result.job == job.digest and storage.exists(f"{job.path}.parquet") else None
