"""Corpora that a table describes: a row a photograph, or several rows with a caption each."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from vitcore import storage
from vitcore.data.corpus import SPLITS, Corpus, Item, Reject, class_order
from vitcore.data.ingest_config import TableConfig
from vitcore.errors import RequestError

_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(slots=True)
class _Row:
    """What the rows of one photograph say together."""

    label: str | None
    group: str | None
    split: str | None
    captions: list[str] = field(default_factory=list)
    problem: str | None = None


def read_table(url: str, config: TableConfig) -> Corpus:
    """List the photographs of a table; rows of one photograph are brought together.

    Raises:
        RequestError: the table cannot be read, or has not the columns asked for.
    """
    read = TABLES[PurePosixPath(url).suffix.lower()]
    try:
        table = read(storage.read(url))
    except (pa.ArrowInvalid, ValueError) as error:
        raise RequestError(f"the table {url} cannot be read: {str(error).splitlines()[0]}") from None
    columns = _columns(url, table.column_names, config)
    rows: dict[str, _Row] = {}
    for cells in _cells(table, columns):
        image = str(cells["image"] or "")
        row = _row(url, cells)
        known = rows.setdefault(image, row)
        if (known.label, known.group, known.split) != (row.label, row.group, row.split):
            known.problem = "its rows disagree about label, group or split"
        known.captions.extend(_captions(cells.get("caption")))
    items, rejects = [], []
    for image, row in rows.items():
        problem = row.problem or _missing(image, row, columns) or _outside(url, image)
        if problem:
            rejects.append(Reject(image, problem))
            continue
        target = storage.join(posixpath.dirname(url), image)
        source = PurePosixPath(image).name if image.startswith("/") else image
        captions = tuple(dict.fromkeys(row.captions))
        items.append(Item(target, source, row.label, captions, row.group, row.split))
    fields = ["image"]
    if "label" in columns:
        fields.append("label")
    if "caption" in columns:
        fields.append("captions")
    classes = class_order(item.label for item in items if item.label is not None)
    return Corpus(url, tuple(fields), classes, tuple(items), tuple(rejects))


def _columns(url: str, names: Sequence[str], config: TableConfig) -> dict[str, str]:
    """Our name → the table's, for the columns it has."""
    usual = {"label": ("label",), "caption": ("captions", "caption"), "group": ("group",), "split": ("split",)}
    wanted = {"image": config.image, **{ours: getattr(config, ours) for ours in usual}}
    columns = {}
    for ours, name in wanted.items():
        if name is not None and name not in names:
            known = ", ".join(names)
            raise RequestError(f"the table {url} has no column {name!r}; it has: {known}; set --table.{ours}")
        found = name or next((one for one in usual[ours] if one in names), None)
        if found is not None:
            columns[ours] = found
    return columns


def _cells(table: pa.Table, columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for batch in table.select(list(columns.values())).to_batches(max_chunksize=10_000):
        values = [column.to_pylist() for column in batch.columns]
        for row in zip(*values, strict=True):
            yield dict(zip(columns, row, strict=True))


def _row(url: str, cells: Mapping[str, Any]) -> _Row:
    split = _text(cells.get("split"))
    if split is not None:
        split = SPLITS.get(split.lower(), split)
        if not _SPLIT_NAME.fullmatch(split):
            raise RequestError(
                f"the table {url} names a split {split!r}; use letters, digits, - and _ (train, val, test)"
            )
    return _Row(label=_text(cells.get("label")), group=_text(cells.get("group")), split=split)


def _text(value: Any) -> str | None:
    """A cell as text: 3.0 is the class 3, blanks are nothing."""
    if isinstance(value, float):
        if value != value:  # NaN marks a missing number
            return None
        value = int(value) if value.is_integer() else value
    return (str(value).strip() or None) if value is not None else None


def _captions(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for one in values if (text := _text(one)) is not None]


def _missing(image: str, row: _Row, columns: Mapping[str, str]) -> str | None:
    if not image:
        return "no path"
    if "label" in columns and row.label is None:
        return "no label"
    if "caption" in columns and not row.captions:
        return "no caption"
    return None


def _outside(url: str, image: str) -> str | None:
    """A table of this machine may name any of its files; one from elsewhere only what lies below its own folder."""
    if "://" in image:
        return "its path is a URL"
    if storage.is_local(url):
        return None
    normal = posixpath.normpath(image)
    return "its path leaves the table's folder" if normal.startswith(("/", "..")) else None


def _read_delimited(delimiter: str) -> Callable[[bytes], pa.Table]:
    def read(data: bytes) -> pa.Table:
        parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        head = pa.csv.open_csv(pa.BufferReader(data), parse_options=parse).schema.names
        # Everything is text: a class "007" must not become 7.
        convert = pa.csv.ConvertOptions(column_types={name: pa.string() for name in head})
        return pa.csv.read_csv(pa.BufferReader(data), parse_options=parse, convert_options=convert)

    return read


def _read_lines(data: bytes) -> pa.Table:
    rows = [json.loads(line) for line in data.splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is not a JSON object")
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _read_parquet(data: bytes) -> pa.Table:
    return pq.ParquetFile(pa.BufferReader(data)).read()


TABLES: dict[str, Callable[[bytes], pa.Table]] = {
    ".csv": _read_delimited(","),
    ".tsv": _read_delimited("\t"),
    ".parquet": _read_parquet,
    ".jsonl": _read_lines,
}
"""Extension → reader of the kinds of table."""
