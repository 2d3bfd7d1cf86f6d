"""Tars that others wrote become a dataset where they lie: not a byte of theirs is touched.

    adopted = adopt(tars, url, config, mapper=threads())

Each tar is read once (`vitcore.data.ingest.adopt_shard`). Once all are known, what the labels mean is known too; each
tar gets an index for every split that it has samples of, which takes no second look at the tar.

    <url>/_vit/adopt/<job>.parquet, <job>.json   what a tar holds; the JSON, written last, says that it is finished
    <url>/_vit/adopt/<digest>.labels.json        which class each label means
    <url>/_vit/index/<tar>-<rows>.parquet        an index
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vitcore import storage
from vitcore.data.corpus.classfile import name_of, read_classes
from vitcore.data.corpus.listing import Reject, class_order
from vitcore.data.corpus.tarsets import TarSet
from vitcore.data.dataset.index import SCHEMA, decode, encode, rows_digest
from vitcore.data.dataset.manifest import FOLDER, current
from vitcore.data.dataset.moments import Moments
from vitcore.data.dataset.shard import Shard, Value
from vitcore.data.ingest.adopt_shard import FOUND, VERSION, AdoptedShard, AdoptJob, adopt_shard
from vitcore.data.ingest.parallel import Mapper
from vitcore.data.ingest.plan import assign
from vitcore.data.ingest_config import IngestConfig
from vitcore.errors import RequestError
from vitcore.identity import canonical_json, digest, identity

_MOST_CLASSES = 1_000_000
_NAMED = 3  # examples in a message
Progress = Callable[[int, int], None]
"""Told how many of how many tars are read."""
T = TypeVar("T")


class AdoptedSplit(Value):
    """What a split has of a tar."""

    split: str
    shard: Shard
    class_counts: tuple[int, ...]
    moments: Moments


@dataclass(frozen=True)
class Adopted:
    """What is to be published: every tar has its indexes."""

    identity: str
    """Name of what was made: equal identities, equal datasets."""
    fields: tuple[str, ...]
    classes: tuple[str, ...]
    added: tuple[AdoptedSplit, ...] = field(repr=False)
    """In the order of the tars' names."""
    rejects: tuple[Reject, ...] = field(repr=False)
    absent: dict[str, int]
    """Photographs that the tars' author could not get, by reason: not ours to reject, but good to know."""

    @property
    def samples(self) -> int:
        """That can be trained on."""
        return sum(one.shard.samples for one in self.added)


@dataclass(frozen=True)
class IndexJob:
    """All that is needed to write the indexes of one tar, anywhere."""

    job: AdoptJob
    adopted: AdoptedShard
    fields: tuple[str, ...]
    classes: int
    """How many there are."""
    labels: str | None
    """URL of the file that says which class each label means; None: there are no labels."""


def adopt(
    tars: TarSet,
    url: str,
    config: IngestConfig,
    *,
    mapper: Mapper,
    before: Sequence[str] = (),
    progress: Progress | None = None,
) -> Adopted:
    """Look at every tar and write its indexes; what was done before is not done again.

    Args:
        tars: as found.
        url: where the dataset is or shall be; the tars' own folder is allowed.
        config: the settings.
        mapper: where tars are read.
        before: classes of the version that the tars are added to; they keep their numbers.
        progress: told of tars.

    Raises:
        RequestError: the tars cannot be read in place, or their labels mean nothing.
        WorkError: a tar cannot be read.
    """
    url = storage.absolute(url)
    _refuse(tars, url)
    current(url)  # refuses a dataset.json that is none of ours before anything is written
    jobs = [AdoptJob(url, tar, config) for tar in tars.tars]
    adopted = _in_order(mapper, adopt_shard, jobs, progress)
    fields = _fields(adopted, config)
    classes, meant = _classes(adopted, config, before) if "label" in fields else ((), {})
    labels = _write_labels(url, meant) if "label" in fields else None
    index = [IndexJob(job, one, fields, len(classes), labels) for job, one in zip(jobs, adopted, strict=True)]
    indexed = _in_order(mapper, index_shard, index, None)
    added = tuple(chain.from_iterable(found for found, _ in indexed))
    rejects = tuple(chain(*(one.rejects for one in adopted), *(left_out for _, left_out in indexed)))
    rows = [[one.split, one.shard.checksum, one.shard.index_digest] for one in added]
    name = identity("adopt", VERSION, {"fields": fields, "classes": classes}, {"source": digest(rows)})
    absent = sum((Counter(one.absent) for one in adopted), Counter[str]())
    return Adopted(name, fields, classes, added, rejects, dict(absent))


def index_shard(job: IndexJob) -> tuple[list[AdoptedSplit], list[Reject]]:
    """Write the indexes of one tar, one for each split it has samples of, and tell what was left out."""
    found = decode(storage.read(f"{job.job.path}.parquet"), FOUND.names)
    meant = _read_labels(job.labels) if job.labels else {}
    labels = [-1 if label is None else meant.get(label, -1) for label in found.column("class").to_pylist()]
    captions = pc.list_value_length(found.column("captions")).to_pylist()
    reasons: list[str | None] = [None] * len(found)
    if "captions" in job.fields:
        reasons = [None if count else "no caption" for count in captions]
    if "label" in job.fields:
        unlabelled = pc.is_null(found.column("class")).to_pylist()
        missing = ["no label" if one else "its label is not among the classes" for one in unlabelled]
        reasons = [why if label < 0 else reason for label, why, reason in zip(labels, missing, reasons, strict=True)]
    names = zip(found.column("key").to_pylist(), reasons, strict=True)
    rejects = [Reject(f"{job.job.tar.name}/{key}", why) for key, why in names if why is not None]
    rows = _rows(found, labels, job).filter(pa.array([why is None for why in reasons], pa.bool_()))
    return [_index(part, split, job) for split, part in _by_split(rows)], rejects


def _rows(found: pa.Table, labels: list[int], job: IndexJob) -> pa.Table:
    """The rows of an index, with the split and the sums over pixels beside them."""
    hashes = found.column("hash").to_pylist()
    groups = [group or content.hex() for group, content in zip(found["group"].to_pylist(), hashes, strict=True)]
    shares = job.job.config.splits
    splits = [one or assign(group, shares) for one, group in zip(found["split"].to_pylist(), groups, strict=True)]
    members = pc.binary_join_element_wise(found.column("key"), found.column("extension"), ".")
    none: pa.Array = pa.array([[]] * len(found), pa.list_(pa.string()))
    made: dict[str, Any] = {
        "label": pa.array(labels, pa.int64()),
        "captions": found.column("captions") if "captions" in job.fields else none,
        "group": pa.array(groups, pa.string()),
        "source": pc.binary_join_element_wise(pa.scalar(job.job.tar.name), members, "/"),
        "origin": found.column("hash"),
        "split": pa.array(splits, pa.string()),
    }
    kept = {name: found.column(name) for name in found.column_names if name != "class"}
    return pa.table(kept | made)


def _by_split(rows: pa.Table) -> Iterable[tuple[str, pa.Table]]:
    for split in sorted(rows.column("split").unique().to_pylist()):
        yield split, rows.filter(pc.equal(rows.column("split"), split))


def _index(rows: pa.Table, split: str, job: IndexJob) -> AdoptedSplit:
    table = rows.select(SCHEMA.names).cast(SCHEMA).combine_chunks()
    said = rows_digest(table)
    adopted = job.adopted
    name = f"{FOLDER}/index/{adopted.checksum[:16]}-{said[:16]}.parquet"
    storage.write(storage.join(job.job.url, name), encode(table))
    sums = [pc.sum(rows.column(one.name)).as_py() or 0 for one in FOUND if one.name.startswith(("sum_", "square_"))]
    labels = table.column("label").to_numpy()
    counts = np.bincount(labels[labels >= 0], minlength=job.classes).tolist()
    return AdoptedSplit(
        split=split,
        shard=Shard(
            name=adopted.name,
            samples=len(table),
            bytes=adopted.bytes,
            checksum=adopted.checksum,
            index=name,
            index_digest=said,
        ),
        class_counts=tuple(counts) if "label" in job.fields else (),
        moments=Moments(
            pixels=pc.sum(rows.column("pixels")).as_py() or 0,
            sums=(sums[0], sums[1], sums[2]),
            squares=(sums[3], sums[4], sums[5]),
        ),
    )


def _refuse(tars: TarSet, url: str) -> None:
    compressed = next((tar for tar in tars.tars if tar.compressed), None)
    if compressed is not None:
        raise RequestError(
            f"{compressed.url} is compressed, so its photographs cannot be read where they lie; "
            "decompress it, or let them be written anew with --tars reshard"
        )
    if storage.is_local(tars.root) and not storage.is_local(url):
        raise RequestError(
            f"the tars of {tars.source} lie on this machine, where readers of {url} cannot find them; "
            "adopt them into a local folder, or let them be written anew with --tars reshard"
        )


def _fields(adopted: Sequence[AdoptedShard], config: IngestConfig) -> tuple[str, ...]:
    """What the samples come with: what any of them has, and those without it are left out."""
    labelled = config.labels == "auto" and any(one.labels for one in adopted)
    told = config.captions == "auto" and any(one.captioned for one in adopted)
    return ("image", *(["label"] if labelled else []), *(["captions"] if told else []))


def _classes(
    adopted: Sequence[AdoptedShard], config: IngestConfig, before: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Names of the classes, and the number that each label means."""
    labels = {label for one in adopted for label in one.labels}
    named: dict[str, str | None]
    if config.tar.classes:
        names = read_classes(config.tar.classes)
        named = {label: name_of(label, names) for label in labels}
    elif all(label.isascii() and label.isdigit() for label in labels):
        most = max(map(int, labels))
        if most >= _MOST_CLASSES:
            raise RequestError(f"the label {most} numbers no class; set --tar.label, or --labels none")
        names = tuple(str(number) for number in range(max(most + 1, len(before))))
        named = {label: str(int(label)) for label in labels}
    else:
        if len(labels) > _MOST_CLASSES:
            raise RequestError(f"{len(labels)} labels are no classes; set --tar.label, or --labels none")
        names = (*before, *class_order(labels - set(before)))
        named = {label: label for label in labels}
    if names[: len(before)] != tuple(before):
        raise RequestError(
            f"the labels count as {_some(names)}, but the dataset's classes are {_some(before)}; "
            "name the classes alike with --tar.classes, or adopt at another URL"
        )
    number = {name: place for place, name in enumerate(names)}
    return names, {label: number[name] for label, name in named.items() if name is not None}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def _write_labels(url: str, meant: dict[str, int]) -> str:
    """Write down which class each label means, once for all workers."""
    name = storage.join(url, FOLDER, "adopt", f"{digest(meant)}.labels.json")
    storage.write(name, canonical_json(meant).encode())
    return name


@lru_cache(maxsize=2)
def _read_labels(url: str) -> dict[str, int]:
    meant: dict[str, int] = json.loads(storage.read(url))
    return meant


def _in_order(mapper: Mapper, function: Callable[[Any], T], jobs: Sequence[Any], progress: Progress | None) -> list[T]:
    """Results in the order of the jobs, whatever order they finish in."""
    results: dict[int, T] = {}
    for place, result in mapper(function, jobs):
        results[place] = result
        if progress:
            progress(len(results), len(jobs))
    return [results[place] for place in range(len(jobs))]
