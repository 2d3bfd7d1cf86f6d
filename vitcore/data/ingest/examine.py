"""The first reading of a corpus: each photograph's hash, from which its key, split and place in the order follow."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vitcore import storage
from vitcore.data.corpus.listing import Corpus
from vitcore.data.corpus.places import Place, fetch
from vitcore.data.ingest import ledger
from vitcore.data.ingest.convert import estimate, quiet
from vitcore.data.ingest.parallel import Mapper

_CHUNK = 64, 2048  # fewest and most photographs of a piece of work
_PIECES = 8  # pieces that a small corpus is read in
_FETCHERS = 16  # photographs fetched at once from a store, where latency bounds it
_PLACE = ("url", "start", "stop", "column")

Progress = Callable[[int, int], None]
"""Told how many of how many are done."""


class Glance(NamedTuple):
    """What one reading of a photograph shows."""

    origin: bytes | None
    """SHA-256; None: it could not be read."""
    stored: int
    """About how many bytes it takes once stored."""
    reason: str | None = None
    """Why it could not be read."""


def examine(
    corpus: Corpus, url: str, resize: int | None, mapper: Mapper, *, fresh: bool, progress: Progress | None = None
) -> list[Glance]:
    """Read every photograph of a corpus, or recall what it hashed to: those of unchanged size and stamp are not read.

    Args:
        corpus: as listed.
        url: of the dataset, where the ledger lies.
        resize: short side that photographs are brought to, for the estimate.
        mapper: where the reading is done.
        fresh: read all, whatever the ledger says.
        progress: told of photographs.
    """
    glances: list[Glance | None] = [None] * len(corpus) if fresh else _recall(url, corpus)
    unread = np.asarray([place for place, glance in enumerate(glances) if glance is None], np.int64)
    size = int(np.clip(math.ceil(len(unread) / _PIECES), *_CHUNK))
    chunks = [unread[start : start + size] for start in range(0, len(unread), size)]
    places = corpus.listing.select(_PLACE)
    done = len(glances) - len(unread)
    work = partial(_glance_all, resize=resize)
    for number, found in mapper(work, [places.take(pa.array(chunk)) for chunk in chunks]):
        for place, glance in zip(chunks[number].tolist(), found, strict=True):
            glances[place] = glance
        done += len(found)
        if progress:
            progress(done, len(glances))
    complete = [glance for glance in glances if glance is not None]
    if len(unread):
        _remember(url, corpus, complete)
    return complete


def _glance_all(places: pa.Table, resize: int | None) -> list[Glance]:
    where = [Place(*row) for row in zip(*(places.column(name).to_pylist() for name in _PLACE), strict=True)]
    with quiet():
        if all(storage.is_local(url) for url in {place.url for place in where}):
            return [_glance(place, resize) for place in where]
        with ThreadPoolExecutor(_FETCHERS) as pool:
            return list(pool.map(partial(_glance, resize=resize), where))


def _glance(place: Place, resize: int | None) -> Glance:
    try:
        data = fetch(place)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return Glance(None, 0, "no such file")
    except PermissionError:
        return Glance(None, 0, "no permission to read it")
    return Glance(hashlib.sha256(data).digest(), estimate(data, resize))


def _recall(url: str, corpus: Corpus) -> list[Glance | None]:
    """What the ledger says of photographs whose name, size and stamp it knows."""
    seen = ledger.load(url, corpus.source)
    places = pc.index_in(_signs(corpus.listing), value_set=_signs(seen), skip_nulls=True)
    origins, stored = (seen.column(name).take(places).to_pylist() for name in ("origin", "stored"))
    return [None if origin is None else Glance(origin, size) for origin, size in zip(origins, stored, strict=True)]


def _signs(table: pa.Table) -> pa.Array:
    """What a photograph is recognised by; null where its size or stamp is unknown."""
    parts = [table.column(name).cast(pa.string()) for name in ("source", "size", "stamp")]
    return pc.binary_join_element_wise(*parts, "\x1f").combine_chunks()


def _remember(url: str, corpus: Corpus, glances: Sequence[Glance]) -> None:
    columns = {name: corpus.listing.column(name) for name in ("source", "size", "stamp")}
    columns["origin"] = pa.array([glance.origin for glance in glances], pa.binary(32))
    columns["stored"] = pa.array([glance.stored for glance in glances], pa.int64())
    seen = pa.table(columns, schema=ledger.SEEN)
    ledger.save(url, corpus.source, seen.filter(seen.column("origin").is_valid()))
