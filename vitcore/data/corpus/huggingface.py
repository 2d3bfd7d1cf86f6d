"""Corpora that Hugging Face's ``datasets`` wrote: ``save_to_disk`` folders, and Parquet files as the hub keeps them.

    root/{dataset_info,state}.json, data-00000-of-00002.arrow        a Dataset
    root/dataset_dict.json, root/SPLIT/…                             a DatasetDict
    root/**/train-00000-of-00005.parquet                             a snapshot of a repository

Rows of Arrow files are read by place, without ``datasets``. Parquet files are first brought into Arrow files
(`vitcore.data.corpus.spool`), since their rows cannot be.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from vitcore import storage
from vitcore.data.corpus import cells, spool
from vitcore.data.corpus.files import Files
from vitcore.data.corpus.listing import LISTING, SPLITS, Corpus, Reject
from vitcore.data.corpus.places import mapped
from vitcore.data.corpus.said import Choice, choose, plain, refused, said
from vitcore.data.ingest_config import IngestConfig
from vitcore.errors import RequestError

MARKS = frozenset({"dataset_dict.json", "state.json"})
"""Files by which a `save_to_disk` folder is known."""
_ROWS = 1000  # turned into columns at a time
_PART = re.compile(r"(.+?)-[0-9]{4,6}-of-[0-9]{4,6}")


class File(NamedTuple):
    """One file of a corpus."""

    url: str
    name: str
    """Relative to the corpus."""
    size: int
    stamp: str
    split: str | None


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the columns of one schema mean."""

    choice: Choice
    classes: Mapping[str, Sequence[str]]
    """Names of the classes, for each column of numbers that stand for some."""


def read_saved(root: str, found: Files, config: IngestConfig) -> Corpus:
    """List what `save_to_disk` wrote.

    Args:
        root: the folder's URL.
        found: what lies in it.
        config: the settings.

    Raises:
        RequestError: files are missing or say something else, or no column holds images.
    """
    rows = zip(found.paths, found.sizes, found.stamps, strict=True)
    known = {path: (size, stamp) for path, size, stamp in rows}
    files = []
    for folder, split in _folders(root, known):
        for name in _data_files(root, folder):
            path = posixpath.join(folder, name)
            if path not in known:
                raise RequestError(f"the dataset {root} has lost its file {path}; copy it again")
            size, stamp = known[path]
            files.append(File(storage.join(root, path), path, size, stamp, split))
    return _read(root, files, config)


def read_parquet(root: str, found: Files, config: IngestConfig) -> Corpus:
    """List Parquet files that hold images; a file's name or folder gives the split.

    Args:
        root: the folder's URL.
        found: the files.
        config: the settings.

    Raises:
        RequestError: a file cannot be read, or no column holds images.
    """
    rows = zip(found.paths, found.sizes, found.stamps, strict=True)
    files = [File(storage.join(root, path), path, size, stamp, _named_split(path)) for path, size, stamp in rows]
    return _read(root, files, config)


def image_columns(schema: pa.Schema) -> list[str]:
    """Columns that may hold images: those declared so; else bytes, or Hugging Face's struct of bytes and path."""
    declared = [name for name, feature in features(schema).items() if _kind(feature) == "Image"]
    return [name for name in declared if name in schema.names] or [one.name for one in schema if _holds_bytes(one.type)]


def features(schema: pa.Schema) -> dict[str, Any]:
    """What `datasets` wrote of the columns; empty where it did not."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def _folders(root: str, known: Container[str]) -> list[tuple[str, str | None]]:
    """Each folder of Arrow files and the split it is."""
    if "dataset_dict.json" not in known:
        return [("", None)]
    splits = _json(root, "dataset_dict.json").get("splits")
    if not isinstance(splits, list) or not all(isinstance(name, str) and _is_name(name) for name in splits):
        raise RequestError(f"{root}/dataset_dict.json does not list splits; save the dataset again")
    return [(name, _split(root, name)) for name in splits]


def _split(root: str, name: str) -> str | None:
    try:
        return cells.split(name)
    except cells.BrokenCellError:
        raise RequestError(f"{root} has a split {name!r}; rename it: letters, digits, - and _") from None


def _data_files(root: str, folder: str) -> list[str]:
    state = _json(root, posixpath.join(folder, "state.json"))
    if state.get("_indices_data_files"):
        raise RequestError(f"{root} is a selection that was not written out; call flatten_indices() and save it again")
    try:
        names = [one["filename"] for one in state["_data_files"]]
    except (KeyError, TypeError):
        names = []
    if not names or not all(isinstance(name, str) and _is_name(name) for name in names):
        state_file = storage.join(root, posixpath.join(folder, "state.json"))
        raise RequestError(f"{state_file} does not list Arrow files; save the dataset again")
    return names


def _json(root: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(storage.read(storage.join(root, name)))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{storage.join(root, name)} cannot be read ({error}); save the dataset again") from None
    return value if isinstance(value, dict) else {}


def _is_name(name: str) -> bool:
    """Whether it is a file's name and no way out of the folder."""
    return bool(name) and "/" not in name and name not in (".", "..")


def _named_split(path: str) -> str | None:
    """``data/train-00000-of-00005.parquet`` and ``default/train/0000.parquet`` are of the split ``train``."""
    folder, file = posixpath.split(path)
    stem = file.removesuffix(".parquet")
    part = _PART.fullmatch(stem)
    for word in (part[1] if part else stem, *reversed(folder.split("/"))):
        if word.lower() in SPLITS:
            return SPLITS[word.lower()]
    return None


def _read(root: str, files: Sequence[File], config: IngestConfig) -> Corpus:
    batches, rejects, fields = [], [], None
    for file in files:
        place = spool.arrow(file.url, file.size, file.stamp, config.scratch)
        try:
            table = mapped(place)
        except (OSError, pa.ArrowInvalid) as error:
            raise RequestError(f"{file.url} is no Arrow file: {str(error).splitlines()[0]}") from None
        reading = _reading(file.url, table.schema, config)
        fields = fields or reading.choice.fields
        if fields != reading.choice.fields:
            raise RequestError(f"the files of {root} have different columns: {file.name} is unlike {files[0].name}")
        for listed, left_out in _list(file, place, table, reading):
            batches.append(listed)
            rejects += left_out
    listing = pa.Table.from_batches(batches, schema=LISTING)
    return Corpus(root, fields or ("image",), listing, tuple(rejects))


def _reading(url: str, schema: pa.Schema, config: IngestConfig) -> _Reading:
    images = image_columns(schema)
    image = config.table.image
    if image not in schema.names or not _holds_bytes(schema.field(image).type):
        if len(images) != 1 or "image" in config.table.model_fields_set:
            may = ", ".join(images) or "none"
            raise RequestError(
                f"the column {image!r} of {url} holds no images (those that may: {may}); set --table.image"
            )
        image = images[0]
    about = features(schema)
    classes = {
        name: [str(one) for one in feature["names"]]
        for name, feature in about.items()
        if _kind(feature) == "ClassLabel" and isinstance(feature.get("names"), list)
    }
    only = next(iter(classes)) if len(classes) == 1 else None
    metadata = [name for name in plain(schema) if name not in images]
    return _Reading(choose(url, schema.names, metadata, image, config, label=only), classes)


def _list(file: File, place: str, table: pa.Table, reading: _Reading) -> Iterator[tuple[pa.RecordBatch, list[Reject]]]:
    """The rows of one file, and those that are left out."""
    choice, start = reading.choice, 0
    for batch in table.to_batches(max_chunksize=_ROWS):
        columns = {name: _values(batch.column(name), reading.classes.get(name)) for name in choice.columns}
        about = pa.Table.from_batches([said(file.url, choice, len(batch), columns)])
        rows = range(start, start + len(batch))
        places = _places(file, place, choice.image, rows, batch.column(choice.image))
        reasons = pc.coalesce(refused(choice.fields, about).combine_chunks(), places.column("problem"))
        keep = pc.is_null(reasons)
        sources = [f"{file.name}/{row}" for row in rows]
        given = about.column("split").combine_chunks()
        split = pc.coalesce(given, pa.scalar(file.split, pa.string()))
        whole = {name: about.column(name).combine_chunks() for name in ("label", "captions", "group", "extra")}
        whole |= {name: places.column(name) for name in ("url", "start", "column", "size")}
        whole |= {"stop": pa.nulls(len(batch), pa.int64()), "source": pa.array(sources), "split": split}
        whole["stamp"] = pa.repeat(pa.scalar(file.stamp, pa.string()), len(batch))
        listed = pa.RecordBatch.from_arrays([whole[name] for name in LISTING.names], schema=LISTING).filter(keep)
        wrong = zip(sources, reasons.to_pylist(), strict=True)
        yield listed, [Reject(source, reason) for source, reason in wrong if reason is not None]
        start += len(batch)


def _places(file: File, place: str, column: str, rows: range, images: pa.Array) -> pa.RecordBatch:
    """Where the photographs of these rows lie: in their cells, or in the files that the cells name."""
    nested = pa.types.is_struct(images.type)
    data = pc.struct_field(images, "bytes") if nested else images  # and nothing where the whole struct is
    sizes = pc.binary_length(data).cast(pa.int64()).to_pylist()
    has_path = nested and images.type.get_field_index("path") >= 0
    paths = pc.struct_field(images, "path").to_pylist() if has_path else [None] * len(rows)
    found = [
        (place, row, column, size, None) if size is not None else _elsewhere(file, path)
        for row, size, path in zip(rows, sizes, paths, strict=True)
    ]
    names = ["url", "start", "column", "size", "problem"]
    types = [pa.string(), pa.int64(), pa.string(), pa.int64(), pa.string()]
    values = zip(*found, strict=True) if found else ([] for _ in names)
    return pa.RecordBatch.from_arrays([pa.array(one, kind) for one, kind in zip(values, types, strict=True)], names)


def _elsewhere(file: File, path: Any) -> tuple[str | None, None, None, int | None, str | None]:
    """A photograph that a cell names instead of holding it."""
    if not path:
        return None, None, None, None, "no image"
    if not storage.is_local(file.url) or "://" in path or path.lower().startswith("pipe:"):
        return None, None, None, None, "its bytes are not in the dataset"
    target = storage.join(posixpath.dirname(file.url), path)
    try:
        return target, None, None, os.stat(target).st_size, None  # noqa: PTH116  (fewer objects a photograph)
    except (OSError, ValueError):
        return None, None, None, None, "no such file"


def _values(column: pa.Array, names: Sequence[str] | None) -> list[Any]:
    """Cells of a column; numbers of classes as their names."""
    values: list[Any] = column.to_pylist()
    if names is None or not pa.types.is_integer(column.type):
        return values
    return [names[value] if value is not None and 0 <= value < len(names) else None for value in values]


def _kind(feature: Any) -> str | None:
    return feature.get("_type") if isinstance(feature, dict) else None


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_bytes(kind.field(place).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
