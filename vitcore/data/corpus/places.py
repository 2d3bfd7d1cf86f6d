"""Where a photograph of a corpus lies: a file, a stretch of one (a member of a tar), or a cell of an Arrow file."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.ipc

from vitcore import storage
from vitcore.errors import WorkError

_OPEN_TABLES = 64


class Place(NamedTuple):
    """Where the bytes of a photograph are; the columns of the same names in a listing."""

    url: str
    start: int | None = None
    """First byte of a stretch, or, with `column`, the row."""
    stop: int | None = None
    """Byte after the last."""
    column: str | None = None
    """Of an Arrow file."""


def fetch(place: Place) -> bytes:
    """The bytes of a photograph.

    Raises:
        OSError: the file is gone, or the store does not answer.
        WorkError: an Arrow file does not lie on this machine, or has changed.
    """
    if place.column is not None:
        return _cell(place)
    if place.start is None or place.stop is None:
        return storage.read(place.url)
    data = storage.read_range(place.url, place.start, place.stop)
    if len(data) != place.stop - place.start:
        raise OSError(f"{place.url} ends before byte {place.stop}")
    return data


@lru_cache(maxsize=_OPEN_TABLES)
def mapped(url: str) -> pa.Table:
    """An Arrow file of this machine, mapped and not read: rows cost what they hold, in any order.

    Raises:
        OSError: it is gone, or no Arrow file.
        WorkError: it lies in a store.
    """
    if not storage.is_local(url):
        raise WorkError(f"{url} lies in a store, where rows of an Arrow file cannot be mapped; copy it to a local disk")
    file = pa.memory_map(str(storage.local_path(url)))
    try:
        return pa.ipc.open_stream(file).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(file).read_all()


def _cell(place: Place) -> bytes:
    """A cell of an Arrow file: bytes, or the ``bytes`` of Hugging Face's image struct."""
    table = mapped(place.url)
    if place.start is None or place.start >= len(table) or place.column not in table.column_names:
        raise WorkError(f"{place.url} changed while it was being ingested; run the ingest again")
    value: Any = table.column(place.column)[place.start].as_py()
    data = value.get("bytes") if isinstance(value, dict) else value
    return bytes(data or b"")
