"""Corpora that a table describes: a row a photograph, or several rows with a caption each.

Rows are turned into columns piece by piece, so a few million of them cost what their columns weigh.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from vitcore import storage
from vitcore.data.corpus.listing import LISTING, Corpus, Reject
from vitcore.data.corpus.said import SAID, Choice, choose, plain, refused, require, said
from vitcore.data.ingest_config import IngestConfig
from vitcore.errors import RequestError

_ROWS = 10_000  # turned into columns at a time
_FEW = 1000  # photographs in a store that are asked for one by one, later; more are looked up by listing their folder
_IMAGE = pa.field("image", pa.string())
_ROW = SAID.append(_IMAGE)

Pieces = Iterator[tuple[int, dict[str, Sequence[Any]]]]
"""Rows of a table, by column: how many, and their values."""


class Opened(NamedTuple):
    """A table that can be read."""

    names: list[str]
    """Of its columns."""
    plain: list[str]
    """Those of them that are metadata unless something else is said."""
    pieces: Callable[[list[str]], Pieces]
    """Reads the named columns."""

    def to_pydict(self) -> dict[str, list[Any]]:
        """All cells, by column."""
        cells: dict[str, list[Any]] = {name: [] for name in self.names}
        for _, piece in self.pieces(self.names):
            for name, values in piece.items():
                cells[name].extend(values)
        return cells


def read_table(url: str, config: IngestConfig) -> Corpus:
    """List the photographs of a table; rows of one photograph are brought together.

    Raises:
        RequestError: the table cannot be read, or has not the columns asked for.
    """
    read = TABLES[PurePosixPath(url).suffix.lower()]
    try:
        table = read(storage.read(url))
        require(url, table.names, [config.table.image], "image")
        choice = choose(url, table.names, table.plain, config.table.image, config)
        folder = _Folder(url)
        pieces = table.pieces(list(dict.fromkeys([choice.image, *choice.columns])))
        rows = pa.Table.from_batches([_said(url, folder, choice, *piece) for piece in pieces], schema=_ROW)
    except RequestError:
        raise
    except (pa.ArrowInvalid, ValueError, RecursionError) as error:
        raise RequestError(f"the table {url} cannot be read: {str(error).splitlines()[0]}") from None
    del table, pieces  # the file's own bytes
    return _corpus(url, folder, choice.fields, _joined(rows))


def _said(url: str, folder: _Folder, choice: Choice, rows: int, columns: dict[str, Sequence[Any]]) -> pa.RecordBatch:
    paths = pa.array(map(folder.path, columns[choice.image]), pa.string())
    return said(url, choice, rows, columns).append_column(_IMAGE, paths)


class _Folder:
    """The folder of a table, from which its photographs are named."""

    def __init__(self, table: str) -> None:
        self._url = posixpath.dirname(table)
        self._below = f"{self._url}/"
        self.local = storage.is_local(table)

    def path(self, cell: Any) -> str:
        """A photograph's path in one spelling; below the folder it is relative."""
        path = cell.decode("utf-8", "backslashreplace") if isinstance(cell, bytes) else str(cell or "")
        path = path if path.isascii() else path.encode("utf-8", "backslashreplace").decode()
        if self.local:
            path = path.removeprefix("file://")
        path = path.removeprefix(self._below)
        if not path or "://" in path or _leaves(path):
            return path
        return posixpath.normpath(path) if "//" in path or "./" in path or path.endswith("/") else path

    def refusal(self, path: str) -> str | None:
        """A table of this machine may name any of its files; one from elsewhere only what lies below its own folder."""
        if not path:
            return "no path"
        if "://" in path or path[:5].lower() == "pipe:":
            return "its path is a URL outside the table's folder"
        return "its path leaves the table's folder" if _leaves(path) and not self.local else None

    def url(self, path: str) -> str:
        """Where a photograph lies."""
        return path if path.startswith("/") else self._below + path

    def source(self, path: str) -> str:
        """What a photograph is called: its path, or, outside the folder, a name that does not tell where."""
        if not _leaves(path):
            return path
        above, name = posixpath.split(path)
        return f"{hashlib.sha256(above.encode()).hexdigest()[:8]}/{name}"

    def signs(self, paths: Sequence[str]) -> Callable[[str], tuple[int | None, str | None]]:
        """Tells size and stamp of each of these files, by which a later ingest sees that they are unchanged."""
        if self.local:
            return lambda path: _sign(self.url(path))
        if len(paths) <= _FEW:
            return lambda _: (None, None)
        # One request tells of a thousand files. A folder that holds far more than the table names is not listed whole.
        above = posixpath.commonpath([posixpath.dirname(path) or "." for path in paths])
        shared = "" if above == "." else f"{above}/"
        listed = islice(storage.walk(self._below + shared), 10 * len(paths))
        found = {shared + one.path: (one.size, one.stamp) for one in listed}
        return lambda path: found.get(path, (None, None))


def _leaves(path: str) -> bool:
    return path.startswith("/") or (".." in path and ".." in path.split("/"))


def _sign(path: str) -> tuple[int | None, str | None]:
    try:
        status = os.stat(path)  # noqa: PTH116  (a Path object a photograph costs more than the call)
    except (OSError, ValueError):
        return None, None  # said when it is read
    return status.st_size, str(status.st_mtime_ns)


def _joined(rows: pa.Table) -> pa.Table:
    """A row a photograph, in the order in which they are first named."""
    codes = _codes(rows.column("image"))
    if not len(codes) or codes.max() + 1 == len(codes):
        return rows
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    first = order[starts]
    joined = rows.take(pa.array(first))
    counts = np.diff(starts, append=len(order))
    differs = np.zeros(len(order), bool)
    for name in ("label", "group", "split"):
        values = _codes(rows.column(name))
        differs |= values[order] != np.repeat(values[first], counts)
    disagree = pa.array(np.logical_or.reduceat(differs, starts))
    problems = pc.if_else(disagree, "its rows disagree about label, group or split", pa.scalar(None, pa.string()))
    captions = _merge(rows.column("captions").take(pa.array(order)), starts)
    reasons = pc.coalesce(problems, joined.column("problem"))
    for name, column in {"captions": captions, "problem": reasons}.items():
        joined = joined.set_column(SAID.get_field_index(name), SAID.field(name), column)
    return joined


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """Equal numbers for equal values, in the order of their first appearance."""
    encoded = column.combine_chunks().dictionary_encode("encode")
    return np.asarray(encoded.indices)


def _merge(captions: pa.ChunkedArray, starts: np.ndarray) -> pa.Array:
    """Lists of captions in groups that begin at `starts`, each group as one list that says nothing twice."""
    lists = captions.combine_chunks()
    offsets = lists.offsets.to_numpy()
    merged = pa.ListArray.from_arrays(pa.array(offsets[np.append(starts, len(offsets) - 1)]), lists.values)
    pieces = []
    for at in range(0, len(merged), _ROWS):
        values = merged.slice(at, _ROWS).to_pylist()
        pieces.append(pa.array([list(dict.fromkeys(one)) for one in values], pa.list_(pa.string())))
    return pa.concat_arrays(pieces)


def _corpus(url: str, folder: _Folder, fields: tuple[str, ...], rows: pa.Table) -> Corpus:
    refusals = pa.array(map(folder.refusal, rows.column("image").to_pylist()), pa.string())
    reasons = pc.coalesce(refusals, refused(fields, rows).combine_chunks())
    keep = pc.is_null(reasons)
    wrong = pc.invert(keep)
    rejects = map(Reject, rows.column("image").filter(wrong).to_pylist(), reasons.filter(wrong).to_pylist())
    kept = rows.filter(keep)
    signs = folder.signs(kept.column("image").to_pylist() if not folder.local else ())
    listed = [_listed(batch, folder, signs) for batch in kept.to_batches(max_chunksize=_ROWS)]
    return Corpus(url, fields, pa.Table.from_batches(listed, schema=LISTING), tuple(rejects))


def _listed(
    batch: pa.RecordBatch, folder: _Folder, signs: Callable[[str], tuple[int | None, str | None]]
) -> pa.RecordBatch:
    paths = batch.column("image").to_pylist()
    found = [signs(path) for path in paths]
    columns: dict[str, Any] = dict.fromkeys(("start", "stop", "column"), [None] * len(paths))
    columns |= {name: batch.column(name) for name in ("label", "captions", "group", "split", "extra")}
    columns |= {"url": list(map(folder.url, paths)), "source": list(map(folder.source, paths))}
    columns |= {"size": [size for size, _ in found], "stamp": [stamp for _, stamp in found]}
    return pa.RecordBatch.from_pydict({name: columns[name] for name in LISTING.names}, schema=LISTING)


def _read_delimited(delimiter: str) -> Callable[[bytes], Opened]:
    def read(data: bytes) -> Opened:
        parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        names = pa.csv.open_csv(pa.BufferReader(data), parse_options=parse).schema.names

        def pieces(columns: list[str]) -> Pieces:
            # Everything is text: a class "007" must not become 7. As bytes: one cell that is not UTF-8 spoils no other.
            types = dict.fromkeys(names, pa.binary())
            convert = pa.csv.ConvertOptions(column_types=types, include_columns=list(dict.fromkeys(columns)))
            return _pieces(pa.csv.open_csv(pa.BufferReader(data), parse_options=parse, convert_options=convert))

        return Opened(names, names, pieces)

    return read


def _pieces(batches: Iterable[pa.RecordBatch]) -> Pieces:
    for batch in batches:
        yield len(batch), {name: _values(batch.column(name)) for name in batch.schema.names}


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_binary(column.type):
        try:
            return list(column.cast(pa.string()).to_pylist())
        except pa.ArrowInvalid:
            return [_decoded(value) for value in column.to_pylist()]
    return list(column.to_pylist())


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value


def _read_lines(data: bytes) -> Opened:
    lines = [line for line in data.splitlines() if line.strip()]
    names: dict[str, None] = {}
    for line in lines:
        names |= dict.fromkeys(_object(line))

    def pieces(columns: list[str]) -> Pieces:
        for start in range(0, len(lines), _ROWS):
            rows = [_object(line) for line in lines[start : start + _ROWS]]
            yield len(rows), {name: [row.get(name) for row in rows] for name in columns}

    return Opened(list(names), list(names), pieces)


def _object(line: bytes) -> dict[str, Any]:
    row = json.loads(line.decode("utf-8", "surrogateescape"))  # what is not UTF-8 is refused cell by cell
    if not isinstance(row, dict):
        raise ValueError("a line is not a JSON object")
    return row


def _read_parquet(data: bytes) -> Opened:
    file = pq.ParquetFile(pa.BufferReader(data))
    schema = file.schema_arrow

    def pieces(columns: list[str]) -> Pieces:
        return _pieces(file.iter_batches(batch_size=_ROWS, columns=columns))

    return Opened(schema.names, plain(schema), pieces)


TABLES: dict[str, Callable[[bytes], Opened]] = {
    ".csv": _read_delimited(","),
    ".tsv": _read_delimited("\t"),
    ".parquet": _read_parquet,
    ".jsonl": _read_lines,
}
"""Extension → reader of the kinds of table."""
