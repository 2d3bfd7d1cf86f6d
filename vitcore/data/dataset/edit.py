"""Changing what a version says of its samples, or leaving some out, without touching a tar.

edit("data/birds", "corrections.csv")           # key,label  (or source,label; captions, split, group likewise)
edit("data/birds", "withdrawn.csv", delete=True)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vitcore import storage
from vitcore.data.corpus.listing import SPLITS
from vitcore.data.corpus.tables import TABLES
from vitcore.data.dataset import revision as revisions
from vitcore.data.dataset.excluded import listed, load
from vitcore.data.dataset.manifest import Dataset, DatasetRef
from vitcore.data.dataset.revision import Said, class_names, revise
from vitcore.data.dataset.rows import Rows
from vitcore.errors import RequestError, WorkError

_COLUMNS = {"label": "class", "caption": "captions", "captions": "captions", "split": "split", "group": "group"}
_NAMED = 3  # examples in a message


def edit(at: str | DatasetRef, table: str, *, delete: bool = False) -> DatasetRef:
    """Publish a version in which the samples that a table names say what the table says, or are left out.

    Args:
        at: the dataset.
        table: CSV, TSV, Parquet or JSONL with a column ``key`` or ``source`` that names samples, and columns ``label``
            (class name), ``caption`` or ``captions``, ``split``, ``group`` with what shall be true; an empty
            cell changes nothing.
        delete: leave the named samples out instead, in later ingests of their corpus too.

    Raises:
        RequestError: the table gives samples that are not there another label, or has nothing to say.
        WorkError: a disk is full, or somebody else published meanwhile.
    """
    dataset = Dataset.open(at)
    rows = Rows.of(dataset)
    cells = _read(table, delete=delete)
    by = "key" if "key" in cells else "source"
    names = [str(name) for name in cells[by]]
    if delete:  # what is gone already is gone: asking again changes nothing
        gone = pc.is_in(rows.table.column(by), pa.array(names)).to_numpy()
        return leave_out(dataset, rows, dict.fromkeys(np.flatnonzero(gone).tolist(), "withdrawn"))
    said = _said(rows, dataset, cells, _places(rows, by, names, table, dataset.url))
    revision = revise(rows, dataset.manifest.classes, said, np.ones(len(rows.table), bool))
    if not revision.edited:
        return dataset.ref
    return publish(dataset, revision, f"{revision.edited} edited by {PurePosixPath(table).name}")


def leave_out(dataset: Dataset, rows: Rows, reasons: Mapping[int, str]) -> DatasetRef:
    """Publish a version without some of its rows; they stay out when their corpus is ingested again.

    Args:
        dataset: the version.
        rows: its rows.
        reasons: why each is left out, by its place in the rows.
    """
    if not reasons:
        return dataset.ref
    stays = np.ones(len(rows.table), bool)
    stays[list(reasons)] = False
    gone, before = listed(rows.table.take(pa.array(reasons.keys())), list(reasons.values())), load(dataset)
    new = gone.filter(pc.invert(pc.is_in(gone.column("origin"), before.column("origin"))))
    revision = revise(rows, dataset.manifest.classes, {}, stays, keep_classes=True)
    return publish(dataset, revision, f"{len(gone)} left out", pa.concat_tables([before, new]))


def publish(
    dataset: Dataset, revision: revisions.Revision, change: str, excluded: pa.Table | None = None
) -> DatasetRef:
    """Publish what was made of a version, with all that is not said anew as it was.

    Raises:
        WorkError: the disk is full, the store does not answer, or somebody else published meanwhile.
    """
    have = dataset.manifest
    try:
        return revisions.publish(
            dataset.url,
            revision,
            dataset,
            fields=have.fields,
            source=have.source,
            settings=have.settings,
            change=change,
            rejects=have.rejects,
            rejects_file=have.rejects_file,
            excluded=excluded,
        )
    except OSError as error:
        raise WorkError(f"{dataset.url} was not changed: {error}; mend that and run this again") from error


def _read(table: str, *, delete: bool) -> dict[str, list[Any]]:
    url = storage.absolute(table)
    suffix = PurePosixPath(url).suffix.lower()
    if suffix not in TABLES or not storage.exists(url):
        raise RequestError(f"{table} is no table that can be read; give a {', '.join(TABLES)} that exists")
    cells = TABLES[suffix](storage.read(url)).to_pydict()
    if not {"key", "source"} & cells.keys():
        raise RequestError(f"{table} has no column key or source, which name samples; it has: {', '.join(cells)}")
    if not delete and not _COLUMNS.keys() & cells.keys():
        raise RequestError(f"{table} says nothing new; give it a column {', '.join(_COLUMNS)}, or ask to delete")
    return cells


def _places(rows: Rows, by: str, names: Sequence[str], table: str, url: str) -> list[list[int]]:
    """Rows of each name; copies of one source are edited together."""
    found: dict[str, list[int]] = {}
    for place, name in enumerate(rows.table.column(by).to_pylist()):
        found.setdefault(name, []).append(place)
    missing = [name for name in names if name not in found]
    if missing:
        some = ", ".join(missing[:_NAMED])
        raise RequestError(f"{len(missing)} names of {table} are not in {url} as {by} ({some}); nothing was changed")
    return [found[name] for name in names]


def _said(rows: Rows, dataset: Dataset, cells: dict[str, list[Any]], places: list[list[int]]) -> Said:
    said: Said = {}
    for theirs, ours in _COLUMNS.items():
        if theirs not in cells:
            continue
        had = class_names(rows.table, dataset.manifest.classes) if ours == "class" else rows.table.column(ours)
        values = had.to_pylist()
        for found, cell in zip(places, cells[theirs], strict=True):
            value = _value(ours, cell)
            for place in found if value is not None else ():
                values[place] = value
        said[ours] = pa.chunked_array([pa.array(values, had.type)])
    return said


def _value(column: str, cell: Any) -> Any:
    """A cell as it is stored; None: it says nothing."""
    if cell is None or cell == "" or cell == []:
        return None
    if column == "captions":
        return [str(one) for one in cell] if isinstance(cell, list) else [str(cell)]
    text = str(cell).strip()
    return SPLITS.get(text.lower(), text) if column == "split" else text
