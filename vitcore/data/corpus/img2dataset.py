"""The Parquet file that img2dataset leaves beside a tar: a row a photograph that it was asked for, stored or not.

The tar says what there is. This file says what should be there, so that nothing goes missing without a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from vitcore import storage
from vitcore.data.corpus.listing import Reject
from vitcore.data.corpus.tarsets import PLAIN, Tar

_STORED = "success"


def unlisted(tar: Tar, taken: Iterable[str], rejects: Iterable[Reject]) -> list[Reject]:
    """Photographs that img2dataset calls stored and that the tar has not.

    Args:
        tar: the tar.
        taken: keys that were found in it.
        rejects: what was found and left out.
    """
    known = {f"{tar.name}/{key}" for key in taken} | {reject.source for reject in rejects}
    stored = (f"{tar.name}/{key}" for key, status in _rows(tar) if status == _STORED)
    return [Reject(source, "listed beside the tar, but not in it") for source in stored if source not in known]


def not_downloaded(tar: Tar) -> Counter[str]:
    """How many photographs img2dataset could not store in this tar, by its own word for why."""
    return Counter(f"img2dataset: {status}" for _, status in _rows(tar) if status != _STORED)


def _rows(tar: Tar) -> Iterator[tuple[str, str]]:
    """Key and status of every row; nothing where there is no such file."""
    try:
        file = pq.ParquetFile(pa.BufferReader(storage.read(f"{tar.url.removesuffix(PLAIN)}.parquet")))
        if not {"key", "status"} <= set(file.schema_arrow.names):
            return
        for batch in file.iter_batches(columns=["key", "status"]):
            for key, status in zip(batch.column("key").to_pylist(), batch.column("status").to_pylist(), strict=True):
                yield str(key), str(status)
    except (OSError, pa.ArrowInvalid):
        return  # somebody else's, and nothing depends on it
