"""Photographs left out on purpose (withdrawn, or copies of others), which stay out when their corpus comes again."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from vitcore import storage
from vitcore.data.dataset.index import decode, encode
from vitcore.data.dataset.manifest import FOLDER, Dataset
from vitcore.identity import canonical_json, digest

EXCLUDED = pa.schema(
    [
        ("origin", pa.binary(32)),  # SHA-256 of the photograph as the corpus has it
        ("source", pa.string()),
        ("reason", pa.string()),
    ]
)
"""Columns of a list of what was left out."""


def listed(rows: pa.Table, reasons: Sequence[str]) -> pa.Table:
    """A list of what rows of a version are left out, and why."""
    columns = {
        "origin": rows.column("origin"),
        "source": rows.column("source"),
        "reason": pa.array(reasons, pa.string()),
    }
    return pa.table(columns, schema=EXCLUDED)


def load(dataset: Dataset | None) -> pa.Table:
    """What a version leaves out."""
    if dataset is None or dataset.manifest.excluded is None:
        return EXCLUDED.empty_table()
    return decode(storage.read(storage.join(dataset.url, dataset.manifest.excluded)))


def reasons(dataset: Dataset | None) -> dict[bytes, str]:
    """Why a version leaves photographs out, by the SHA-256 of each."""
    excluded = load(dataset)
    return dict(zip(*(excluded.column(name).to_pylist() for name in ("origin", "reason")), strict=True))


def save(url: str, excluded: pa.Table) -> str | None:
    """Keep a list under a name that its content gives it; returns the name, relative to the dataset's URL."""
    if not len(excluded):
        return None
    content = [excluded.column(name).to_pylist() for name in ("source", "reason")]
    origins = [origin.hex() for origin in excluded.column("origin").to_pylist()]
    name = f"{FOLDER}/{digest(canonical_json([*content, origins]))}.excluded.parquet"
    storage.write(storage.join(url, name), encode(excluded))
    return name
