"""A listed corpus: which photographs there are, with labels, captions, groups and given splits, before any is read.

A listing is a table, not a list of objects: ten million photographs fit in memory, and comparing two listings is a
matter of columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""How a split may be spelt → its name here."""

LISTING = pa.schema(
    [
        ("url", pa.string()),  # of the file that holds the photograph
        ("start", pa.int64()),  # first byte in it, or the row where `column` is set; null: the whole file
        ("stop", pa.int64()),  # byte after the last
        ("column", pa.string()),  # of an Arrow file, whose `start`-th row holds the photograph; else null
        ("source", pa.string()),  # its name inside the corpus, unique; kept with the dataset, so never an absolute path
        ("label", pa.string()),  # name of the class; null: none
        ("captions", pa.list_(pa.string())),
        ("group", pa.string()),  # photographs that stay in one split together; null: its content is its group
        ("split", pa.string()),  # as the corpus gives it; null: by hash
        ("extra", pa.string()),  # further metadata as a JSON object; null: none
        ("size", pa.int64()),  # of the photograph, in bytes; null: unknown
        ("stamp", pa.string()),  # changes when the file changes (time of change, ETag); null: unknown
    ]
)
"""Columns of a listing: a row a photograph."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A photograph that was left out."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """A listed corpus."""

    source: str
    """Absolute path or URL of the folder, table or set of tars."""
    fields: tuple[str, ...]
    """What every photograph comes with: ``image``, and ``label`` or ``captions`` or both or neither."""
    listing: pa.Table
    """Of the schema `LISTING`."""
    rejects: tuple[Reject, ...] = ()

    def __len__(self) -> int:
        return int(self.listing.num_rows)


def listing(rows: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]) -> pa.Table:
    """A listing from rows or columns; what is left out is null, captions are an empty list."""
    if isinstance(rows, Mapping):
        length = len(next(iter(rows.values()), ()))
        columns = {name: rows.get(name, [None] * length) for name in LISTING.names}
        if "captions" not in rows:
            columns["captions"] = [[]] * length
        return pa.table(columns, schema=LISTING)
    return pa.Table.from_pylist([{"captions": [], **row} for row in rows], schema=LISTING)


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in the order their labels count: numbers by value, names by spelling."""
    distinct = set(names)
    if all(re.fullmatch(r"-?[0-9]+", name) for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))
