"""Tars that others wrote become a version: their indexes are made, then published like any other change."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np

from vitcore import storage
from vitcore.data.corpus.tarsets import TarSet
from vitcore.data.dataset import manifest
from vitcore.data.dataset import revision as revisions
from vitcore.data.dataset.edit import leave_out
from vitcore.data.dataset.excluded import reasons
from vitcore.data.dataset.manifest import Dataset, DatasetRef
from vitcore.data.dataset.revision import revise
from vitcore.data.dataset.rows import Rows
from vitcore.data.ingest.adopt import adopt
from vitcore.data.ingest.mode import Mode, Progress
from vitcore.data.ingest.parallel import Mapper
from vitcore.data.ingest.rejects import check_budget, list_rejects
from vitcore.data.ingest_config import IngestConfig
from vitcore.errors import RequestError


def adopt_in_place(
    tars: TarSet, url: str, config: IngestConfig, *, mode: Mode, mapper: Mapper, progress: Progress | None = None
) -> DatasetRef:
    """Make tars that others wrote a dataset where they lie.

    Raises:
        RequestError: they cannot be read in place, or do not fit the dataset they are to be appended to.
        WorkError: more samples were rejected than the error budget allows, or somebody else published.
    """
    url = storage.absolute(url)
    parent = Dataset.at(url)
    rows = Rows.of(parent) if mode.append and parent is not None else None
    before = parent.manifest.classes if rows is not None and parent is not None else ()
    tell = partial(progress, "read") if progress else None
    adopted = adopt(tars, url, config, mapper=mapper, before=before, progress=tell)
    done = manifest.find(url, adopted.identity) if rows is None else None
    if done is not None:
        manifest.point(done.url, done.digest, expected=parent.digest if parent else None)
        return done if mode.fresh else _still_out(done, parent)
    if rows is not None and parent is not None and set(adopted.fields) != set(parent.manifest.fields):
        have, give = ", ".join(parent.manifest.fields), ", ".join(adopted.fields)
        raise RequestError(f"{tars.source} has {give}, but {url} has {have}; adopt it at another URL")
    listed = list_rejects(url, adopted.identity, adopted.rejects)
    total = adopted.samples + len(adopted.rejects)
    check_budget(url, adopted.rejects, total, config.error_budget, listed)
    again = {one.shard.name for one in adopted.added}
    home = [] if rows is None else [shard.name in again for _, shard in rows.shards]
    stays = np.ones(0, bool) if rows is None else ~np.asarray(home, bool)[rows.table.column("shard").to_numpy()]
    ref = revisions.publish(
        url,
        revise(rows, adopted.classes, {}, stays, keep_classes=True),
        parent,
        fields=adopted.fields,
        source=tars.source,
        settings=config.model_dump(mode="json"),
        change=f"{len(tars.tars)} tars adopted with {adopted.samples} samples",
        added=adopted.added,
        rejects=Counter(reject.reason for reject in adopted.rejects) + Counter(adopted.absent),
        rejects_file=listed,
        license=config.license,
        identity=adopted.identity if rows is None else None,
    )
    return ref if mode.fresh else _still_out(ref, parent)


def _still_out(ref: DatasetRef, before: Dataset | None) -> DatasetRef:
    """The version without what the one before left out on purpose."""
    why = reasons(before)
    if not why:
        return ref
    dataset = Dataset.open(ref)
    rows = Rows.of(dataset)
    origins = enumerate(rows.table.column("origin").to_pylist())
    return leave_out(dataset, rows, {place: why[origin] for place, origin in origins if origin in why})
