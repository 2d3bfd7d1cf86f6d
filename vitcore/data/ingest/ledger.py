"""What the photographs of a corpus hashed to when they were last read, so that a nightly ingest reads only what is new.

A convenience and no truth: a lost ledger costs one reading, and what is stored is compared with its hash again.
"""

from __future__ import annotations

import pyarrow as pa

from vitcore import storage
from vitcore.data.dataset.index import decode, encode
from vitcore.data.dataset.manifest import FOLDER
from vitcore.identity import digest

SEEN = pa.schema(
    [
        ("source", pa.string()),
        ("size", pa.int64()),
        ("stamp", pa.string()),
        ("origin", pa.binary(32)),  # SHA-256 of the photograph
        ("stored", pa.int64()),  # about how many bytes it takes once stored
    ]
)
"""Columns of a ledger."""


def load(url: str, source: str) -> pa.Table:
    """The ledger of a corpus, empty where there is none that can be read."""
    try:
        table = decode(storage.read(_name(url, source)))
    except (OSError, pa.ArrowInvalid):
        return SEEN.empty_table()
    return table if table.schema.equals(SEEN) else SEEN.empty_table()


def save(url: str, source: str, seen: pa.Table) -> None:
    """Keep a ledger, in place of the one before."""
    storage.write(_name(url, source), encode(seen))


def _name(url: str, source: str) -> str:
    return storage.join(url, FOLDER, "ledger", f"{digest(source)}.parquet")
