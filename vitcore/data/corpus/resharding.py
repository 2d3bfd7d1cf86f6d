"""Tars as a corpus whose photographs are written anew: those that others wrote, and those of a dataset of ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from vitcore import storage
from vitcore.data.corpus import spool
from vitcore.data.corpus.classfile import name_of, read_classes
from vitcore.data.corpus.foreign import scan
from vitcore.data.corpus.img2dataset import unlisted
from vitcore.data.corpus.listing import LISTING, Corpus, Reject
from vitcore.data.corpus.tarsets import Tar, TarSet
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.dataset.rows import Rows
from vitcore.data.ingest_config import IngestConfig
from vitcore.errors import WorkError

_READERS = 8  # tars scanned at once: waiting for a store, not parsing, is what takes time


def read_tars(tars: TarSet, config: IngestConfig) -> Corpus:
    """List the samples of tars that others wrote, by walking over the headers of each.

    Raises:
        RequestError: a tar is no tar, or the file of class names is wrong.
        WorkError: a tar cannot be read.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        scanned = list(pool.map(lambda tar: _list(tar, config), tars.tars))
    rejects = [reject for _, left_out in scanned for reject in left_out]
    listing = pa.concat_tables([listed for listed, _ in scanned]) if scanned else LISTING.empty_table()
    if config.tar.classes and config.labels == "auto":
        listing, unknown = _name(listing, read_classes(config.tar.classes))
        rejects += unknown
    fields = ["image"]
    for field, present in {"label": pc.is_valid(listing["label"]), "captions": _has_captions(listing)}.items():
        if pc.any(present).as_py():
            fields.append(field)
            missing = listing.filter(pc.invert(present)).column("source").to_pylist()
            rejects += [Reject(source, f"no {field.removesuffix('s')}") for source in missing]
            listing = listing.filter(present)
    return Corpus(tars.source, tuple(fields), listing, tuple(rejects))


def read_dataset(url: str, config: IngestConfig) -> Corpus:
    """List the current version of a dataset of ours: what it holds by now, by its index, splits as they are."""
    dataset = Dataset.open(url)
    rows = Rows.of(dataset)
    table = rows.table
    tars = [dataset.shard_url(shard) for _, shard in rows.shards]
    shards = table.column("shard").to_pylist()
    names, sources = dataset.manifest.classes, table.column("source").to_pylist()
    copies = Counter(sources)
    keys = table.column("key").to_pylist()
    named = config.labels == "auto" and "label" in dataset.manifest.fields
    told = config.captions == "auto" and "captions" in dataset.manifest.fields
    labels = [names[label] if named and label >= 0 else None for label in table.column("label").to_pylist()]
    columns = {
        "url": [tars[shard] for shard in shards],
        "start": table.column("offset"),
        "stop": pc.add(table.column("offset"), table.column("size")),
        "column": pa.nulls(len(table), pa.string()),
        # Two corpora that were ingested one after the other may have used a name twice.
        "source": [f"{key}/{one}" if copies[one] > 1 else one for key, one in zip(keys, sources, strict=True)],
        "label": labels,
        "captions": table.column("captions") if told else [[]] * len(table),
        "stamp": [rows.shards[shard][1].checksum[:16] for shard in shards],
        **{name: table.column(name) for name in ("group", "split", "extra", "size")},
    }
    fields = ("image", *(["label"] if named else []), *(["captions"] if told else []))
    return Corpus(url, fields, pa.table({name: columns[name] for name in LISTING.names}, schema=LISTING))


def _list(tar: Tar, config: IngestConfig) -> tuple[pa.Table, Sequence[Reject]]:
    place = tar
    try:
        if tar.compressed:
            url = spool.plain_tar(tar.url, tar.size, tar.stamp, config.scratch)
            place = replace(tar, url=url, size=storage.size(url))
        table, rejects = scan(place, config.tar)
    except OSError as error:
        raise WorkError(f"the tar {tar.url} cannot be read: {error}") from error
    rejects += unlisted(tar, table.column("key").to_pylist(), rejects)
    count = len(table)
    nothing, mute = pa.nulls(count, pa.string()), pa.array([[]] * count, pa.list_(pa.string()))
    members = pc.binary_join_element_wise(table.column("key"), table.column("extension"), ".")
    columns = {
        "url": pa.repeat(pa.scalar(place.url), count),
        "start": table.column("offset"),
        "stop": pc.add(table.column("offset"), table.column("size")),
        "column": nothing,
        "source": pc.binary_join_element_wise(pa.scalar(tar.name), members, "/"),
        "label": table.column("class") if config.labels == "auto" else nothing,
        "captions": table.column("captions") if config.captions == "auto" else mute,
        "stamp": pa.repeat(pa.scalar(tar.stamp), count),
        **{name: table.column(name) for name in ("group", "split", "extra", "size")},
    }
    return pa.table({name: columns[name] for name in LISTING.names}, schema=LISTING), rejects


def _name(listing: pa.Table, names: tuple[str, ...]) -> tuple[pa.Table, list[Reject]]:
    """A listing with class names in place of numbers, and the photographs whose label means none of the classes."""
    labels = listing.column("label").to_pylist()
    meant = {label: name_of(label, names) for label in set(labels) if label is not None}
    named = [meant.get(label) for label in labels]
    unknown = [one is not None and other is None for one, other in zip(labels, named, strict=True)]
    wrong = listing.filter(pa.array(unknown)).column("source").to_pylist()
    listing = listing.set_column(LISTING.get_field_index("label"), LISTING.field("label"), pa.array(named, pa.string()))
    kept = listing.filter(pa.array([not one for one in unknown], pa.bool_()))
    return kept, [Reject(source, "its label is not among the classes") for source in wrong]


def _has_captions(listing: pa.Table) -> pa.ChunkedArray:
    return pc.greater(pc.list_value_length(listing.column("captions")), 0)
