"""An index that is lost, made again from its tar. It is believed only if its rows have the published digest.

What an edit said of a sample stands in the index alone: such an index cannot be made again, and nothing is guessed.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from vitcore import storage
from vitcore.data.corpus import cells
from vitcore.data.corpus.cells import BrokenCellError
from vitcore.data.corpus.sources import recognise
from vitcore.data.corpus.tarwalk import Damage, Stream, walk
from vitcore.data.dataset.index import SCHEMA, rows_digest
from vitcore.data.dataset.manifest import FOLDER, Dataset
from vitcore.data.dataset.shard import Shard
from vitcore.data.ingest.adopt import IndexJob, index_shard
from vitcore.data.ingest.adopt_shard import AdoptJob, adopt_shard
from vitcore.data.ingest.convert import Form, UnfitError, convert
from vitcore.data.ingest_config import IngestConfig
from vitcore.data.maintenance.verify import LARGEST, read_index, written_here
from vitcore.errors import RequestError, WorkError

_IMAGES = frozenset({"jpg", "png", "webp"})
_TEXT_LIMIT = 1 << 20  # bytes of a label or a JSON
# What the writer puts into a sample's JSON beside the corpus's own metadata (`vitcore.data.ingest.shards`).
_WRITTEN = frozenset({"key", "source", "sha256", "width", "height", "original_width", "original_height"})
_SAID = frozenset({"class", "caption", "captions", "group"})


def reindex(dataset: Dataset, shard: Shard) -> pa.Table | None:
    """The published index of a shard, made again from its tar; None where the tar does not say it.

    Args:
        dataset: the version that lists the shard.
        shard: one whose index is missing or damaged.

    Raises:
        OSError: the store does not answer.
    """
    try:
        config = IngestConfig.model_validate(dataset.manifest.settings)
    except ValidationError:  # published by other means than an ingest
        config = IngestConfig()
    if not written_here(shard.name):
        return _adopted(dataset, shard, config)
    try:
        rows = list(_rows(dataset.shard_url(shard), config))
    except (FileNotFoundError, ValueError, KeyError, TypeError, BrokenCellError):
        return None  # the tar is gone, or says something else than our writer
    for grouped in (rows, [row | {"group": row["origin"].hex()} for row in rows]):
        table = _table(grouped)
        if table is not None and rows_digest(table) == shard.index_digest:
            return table
    return None


def _table(rows: list[dict[str, Any]]) -> pa.Table | None:
    try:
        return pa.Table.from_pylist(rows, schema=SCHEMA)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return None


def _rows(tar: str, config: IngestConfig) -> Iterator[dict[str, Any]]:
    """The rows that the writer of a tar of ours made, but for the group, of which the tar may not tell."""
    form = Form(resize=None, quality=config.quality, max_pixels=config.max_pixels, verify=config.verify)
    row: dict[str, Any] = {}
    with Stream(tar, storage.size(tar)) as stream:
        for member in walk(stream):
            if isinstance(member, Damage):
                raise ValueError(member.what)
            key, _, extension = member.name.rpartition(".")
            if extension in _IMAGES and member.size <= LARGEST:
                row = _image(stream.read(member.size), form)
                row |= {"key": key, "offset": member.offset, "size": member.size, "extension": extension, "label": -1}
            elif key == row.get("key") and member.size <= _TEXT_LIMIT and extension in ("cls", "json"):
                data = stream.read(member.size)
                if extension == "cls":
                    row["label"] = int(data)
                else:  # the last member of a sample
                    yield row | _said(json.loads(data))


def _image(data: bytes, form: Form) -> dict[str, Any]:
    try:
        phash = convert(data, form).phash
    except UnfitError:
        phash = None
    return {"hash": hashlib.sha256(data).digest(), "phash": phash}


def _said(about: Mapping[str, Any]) -> dict[str, Any]:
    origin = bytes.fromhex(about["sha256"])
    return {
        "captions": about.get("captions", []),
        "width": about["width"],
        "height": about["height"],
        "group": about.get("group", origin.hex()),
        "source": about["source"],
        "origin": origin,
        "extra": cells.metadata({name: value for name, value in about.items() if name not in _WRITTEN | _SAID}),
    }


def _adopted(dataset: Dataset, shard: Shard, config: IngestConfig) -> pa.Table | None:
    """The index of a tar that others wrote: it is looked at as it was when it was adopted, without touching a thing."""
    try:
        tars = recognise(dataset.manifest.source, config).tars
        tar = next((one for one in tars.tars if one.url == dataset.shard_url(shard)), None) if tars else None
        if tar is None:
            return None
        with tempfile.TemporaryDirectory(prefix="vit-reindex-") as folder:
            job = AdoptJob(folder, tar, config)
            adopted = adopt_shard(job)
            for labels in _labels(dataset):
                index_shard(IndexJob(job, adopted, dataset.manifest.fields, len(dataset.manifest.classes), labels))
                table = read_index(folder, shard)
                if isinstance(table, pa.Table):
                    return table
    except RequestError:  # the tars are not where they were: nothing to make it from
        return None
    except WorkError as error:
        if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None  # a store that is silent is no reason to give up
        return None
    return None


def _labels(dataset: Dataset) -> list[str | None]:
    """The files, one of which says what the labels meant to the version."""
    folder = storage.join(dataset.url, FOLDER, "adopt")
    if "label" not in dataset.manifest.fields:
        return [None]
    return [storage.join(folder, name) for name in storage.names(folder) if name.endswith(".labels.json")]
