"""What the rows of a table say of their photographs, whoever wrote the table: chosen columns in, clean columns out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from vitcore.data.corpus import cells
from vitcore.data.corpus.cells import BrokenCellError
from vitcore.data.ingest_config import IngestConfig, TableConfig
from vitcore.errors import RequestError

SAID = pa.schema(
    [
        ("label", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("group", pa.string()),
        ("split", pa.string()),
        ("extra", pa.string()),
        ("problem", pa.string()),  # why the row cannot be used; null: it can
        ("mute", pa.string()),  # why it has no caption, where that has a reason
    ]
)
"""Columns of what is said of a row's photograph."""

_USUAL = {"label": ("label", "labels"), "group": ("group",), "split": ("split",)}
_CAPTIONS = ("captions", "caption", "text")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Choice:
    """Which column of a table says what."""

    image: str
    label: str | None
    captions: tuple[str, ...]
    group: str | None
    split: str | None
    extra: tuple[str, ...]

    @property
    def columns(self) -> list[str]:
        """All of them but the image's, each once."""
        named = (self.label, *self.captions, self.group, self.split, *self.extra)
        return list(dict.fromkeys(name for name in named if name is not None))

    @property
    def fields(self) -> tuple[str, ...]:
        """What every photograph comes with."""
        return ("image", *(["label"] if self.label else []), *(["captions"] if self.captions else []))


def plain(schema: pa.Schema) -> list[str]:
    """Columns that are metadata unless something else is said: no bytes, and no lists of fractions (embeddings)."""
    return [field.name for field in schema if _plain(field.type)]


def _plain(kind: pa.DataType) -> bool:
    if pa.types.is_nested(kind):
        inner = [kind.field(number).type for number in range(kind.num_fields)]
        vector = not pa.types.is_struct(kind) and any(map(pa.types.is_floating, inner))
        return all(map(_plain, inner)) and not vector
    return not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def choose(
    url: str,
    names: Sequence[str],
    metadata: Sequence[str],
    image: str,
    config: IngestConfig,
    *,
    label: str | None = None,
) -> Choice:
    """Find the columns that the settings name, or those of usual names.

    Args:
        url: of the table, for errors.
        names: of its columns.
        metadata: those of them that are kept as such unless something else is said.
        image: column with the photographs or their paths.
        config: the settings.
        label: column with the class where none has a usual name.

    Raises:
        RequestError: there is no such column.
    """
    table = config.table
    found = {ours: _column(url, names, ours, table) for ours in _USUAL}
    if config.labels == "none":
        found["label"] = None
    elif found["label"] is None:
        found["label"] = label
    captions = table.caption or tuple(name for name in _CAPTIONS if name in names)[:1]
    require(url, names, captions, "caption")
    if config.captions == "none":
        captions = ()
    taken = {image, *found.values(), *captions}
    extra = tuple(name for name in metadata if name not in taken) if table.extra == "all" else table.extra
    require(url, names, extra, "extra")
    return Choice(image, found["label"], captions, found["group"], found["split"], extra)


def _column(url: str, names: Sequence[str], ours: str, table: TableConfig) -> str | None:
    asked: str | None = getattr(table, ours)
    if asked is not None:
        require(url, names, [asked], ours)
        return asked
    return next((name for name in _USUAL[ours] if name in names), None)


def require(url: str, names: Sequence[str], asked: Sequence[str], setting: str) -> None:
    """Ask a table for columns.

    Raises:
        RequestError: naming the column that it has not.
    """
    for name in asked:
        if name not in names:
            known = ", ".join(names)
            raise RequestError(f"the table {url} has no column {name!r}; it has: {known}; set --table.{setting}")


def said(url: str, choice: Choice, rows: int, columns: Mapping[str, Sequence[Any]]) -> pa.RecordBatch:
    """What a piece of a table says.

    Args:
        url: of the table, for errors.
        choice: which column says what.
        rows: of the piece.
        columns: their values, by the table's names.

    Returns:
        A batch of the schema `SAID`.

    Raises:
        RequestError: it names a split that cannot be one.
    """
    nothing: list[Any] = [None] * rows
    problems: list[str | None] = [None] * rows
    mute: list[str | None] = [None] * rows

    def clean(function: Callable[[Any], T], values: Sequence[Any], reasons: list[str | None]) -> list[T | None]:
        found: list[T | None] = [None] * rows
        for row, value in enumerate(values):
            if value is not None:
                try:
                    found[row] = function(value)
                except BrokenCellError as error:
                    reasons[row] = reasons[row] or str(error)
        return found

    def one(name: str | None) -> Sequence[Any]:
        return nothing if name is None else columns[name]

    captions = [columns[name] for name in choice.captions]
    several = captions[0] if len(captions) == 1 else [_flat(row) for row in zip(*captions, strict=True)]
    extra = [dict(zip(choice.extra, row, strict=True)) for row in zip(*(columns[n] for n in choice.extra), strict=True)]
    return pa.RecordBatch.from_pydict(
        {
            "label": clean(cells.label, one(choice.label), problems),
            "captions": [found or [] for found in clean(cells.captions, several or nothing, mute)],
            "group": clean(lambda value: cells.label(value, "group"), one(choice.group), problems),
            "split": _splits(url, one(choice.split)),
            "extra": clean(cells.metadata, extra or nothing, problems),
            "problem": problems,
            "mute": mute,
        },
        schema=SAID,
    )


def _flat(row: Sequence[Any]) -> list[Any]:
    """Captions of several columns, some of which may hold lists."""
    return [one for cell in row for one in (cell if isinstance(cell, list) else [cell])]


def _splits(url: str, values: Sequence[Any]) -> list[str | None]:
    found = []
    for value in values:
        try:
            found.append(cells.split(value))
        except BrokenCellError:
            raise RequestError(
                f"the table {url} names a split {value!r}; use letters, digits, - and _ (train, val, test)"
            ) from None
    return found


def refused(fields: Sequence[str], table: pa.Table) -> pa.ChunkedArray:
    """Why each photograph of a table with the columns `SAID` cannot be taken; null for those that can."""
    nothing = pa.scalar(None, pa.string())
    reason = table.column("problem")
    if "label" in fields:
        missing = pc.is_null(table.column("label"))
        reason = pc.coalesce(reason, pc.if_else(missing, "no label", nothing))
    if "captions" in fields:
        missing = pc.equal(pc.list_value_length(table.column("captions")), 0)
        reason = pc.coalesce(reason, pc.if_else(missing, pc.coalesce(table.column("mute"), "no caption"), nothing))
    return reason
