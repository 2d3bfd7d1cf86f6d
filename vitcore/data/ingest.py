"""From a raw corpus to a published dataset version: list, read, plan, write the new shards, publish.

    ref = ingest("photos", "data/birds")

The same call every night publishes what changed: new photographs are written, labels that changed are edited in the
index, vanished photographs are left out of the new version. Killed at any instant, the same call goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from vitcore import storage
from vitcore.data import manifest
from vitcore.data import revision as revisions
from vitcore.data.adopt import adopt
from vitcore.data.audit import AuditConfig
from vitcore.data.dedup import copies
from vitcore.data.edit import leave_out
from vitcore.data.examine import examine
from vitcore.data.excluded import load
from vitcore.data.ingest_config import IngestConfig
from vitcore.data.manifest import Dataset, DatasetRef
from vitcore.data.parallel import Mapper, threads
from vitcore.data.plan import Plan, lay_out
from vitcore.data.rejects import check_budget, list_rejects
from vitcore.data.revision import revise
from vitcore.data.rows import Rows
from vitcore.data.shards import ShardResult, write_shard
from vitcore.data.sources import Source, read_corpus, recognise
from vitcore.data.tarsets import TarSet
from vitcore.errors import RequestError, WorkError

Progress = Callable[[Literal["read", "write"], int, int], None]
"""Told how many photographs of how many are read, then how many shards of how many are written."""


@dataclass(frozen=True)
class Mode:
    """How a corpus meets the version that is there."""

    append: bool = False
    """Keep what the corpus does not name."""
    fresh: bool = False
    """Read and write everything again."""


def ingest(
    source: str,
    url: str,
    config: IngestConfig | None = None,
    *,
    mode: Mode | None = None,
    mapper: Mapper | None = None,
    progress: Progress | None = None,
) -> DatasetRef:
    """Make the dataset at `url` what the corpus and the settings say; what is there already is not done again.

    Args:
        source: folder, table, Hugging Face folder or tars, local or remote.
        url: where the dataset is or shall be.
        config: default: `IngestConfig()`.
        mode: default: the dataset shall hold the corpus and nothing else.
        mapper: where photographs are read and shards written; default: threads of this process.
        progress: told of photographs and shards.

    Raises:
        RequestError: the source or the settings are wrong.
        WorkError: more photographs were rejected than the error budget allows, a disk is full, somebody else published.
    """
    config, mode, mapper = config or IngestConfig(), mode or Mode(), mapper or threads()
    found = recognise(source, config)
    try:
        if found.tars is not None and config.tars == "adopt":
            ref = adopt_in_place(found.tars, url, config, mode=mode, mapper=mapper, progress=progress)
        else:
            planned = plan(found, url, config, mode=mode, mapper=mapper, progress=progress)
            ref = (None if mode.fresh else known(planned)) or finish(planned, mapper=mapper, progress=progress)
        return leave_out_near_copies(ref) if config.dedup == "near" else ref
    except OSError as error:
        raise WorkError(
            f"the ingest into {url} was broken off: {error}; mend that and run it again, what is finished is kept"
        ) from error


def plan(
    source: str | Source,
    url: str,
    config: IngestConfig | None = None,
    *,
    mode: Mode | None = None,
    mapper: Mapper | None = None,
    progress: Progress | None = None,
) -> Plan:
    """What `ingest` will do with a source that is no set of tars to adopt.

    Raises:
        RequestError: the source is missing, empty, inside out with the dataset, or the settings do not fit.
    """
    config, mode, mapper = config or IngestConfig(), mode or Mode(), mapper or threads()
    url = storage.absolute(url)
    found = recognise(source, config) if isinstance(source, str) else source
    if f"{url}/".startswith(f"{found.url}/"):
        raise RequestError(f"the dataset {url} would lie inside its source {found.url}; give another URL")
    corpus = read_corpus(found, config)
    version = manifest.current(url)
    parent = None if version is None else Dataset.open(DatasetRef(url=url, digest=version))
    tell = partial(progress, "read") if progress else None
    glances = examine(corpus, url, config.resize, mapper, fresh=mode.fresh, progress=tell)
    return lay_out(url, corpus, glances, config, parent, append=mode.append, fresh=mode.fresh)


def known(planned: Plan) -> DatasetRef | None:
    """The version that holds what is planned, made the current one; None where there is none yet."""
    if planned.idle and planned.parent is not None:
        return planned.parent.ref
    found = manifest.find(planned.url, planned.identity)
    if found is not None:
        manifest.point(found.url, found.digest, expected=planned.parent.digest if planned.parent else None)
    return found


def finish(planned: Plan, *, mapper: Mapper, progress: Progress | None = None) -> DatasetRef:
    """Write the shards of a plan, wherever the mapper does it, and publish."""
    results: list[ShardResult] = []
    for _, result in mapper(write_shard, planned.jobs):
        results.append(result)
        if progress:
            progress("write", len(results), len(planned.jobs))
    return publish(planned, results)


def publish(planned: Plan, results: Sequence[ShardResult]) -> DatasetRef:
    """Publish what the jobs of a plan have written, with what stays of the version before, as the current version.

    Raises:
        WorkError: shards are missing, or more photographs were rejected than the error budget allows (the sentence
            says why and names the file that lists them), or somebody else published meanwhile.
    """
    written = sorted(results, key=lambda result: result.shard.name)
    rejects = [*planned.rejects, *(reject for result in written for reject in result.rejects)]
    stored = sum(result.shard.samples for result in written)
    if stored + sum(len(result.rejects) for result in written) != planned.new:
        raise WorkError(f"not every shard of the ingest into {planned.url} was written; run it again")
    total = stored + len(planned.revision.kept) + len(rejects)
    listed = list_rejects(planned.url, planned.identity, rejects, planned.left_out)
    check_budget(planned.url, rejects, total, planned.config.error_budget, listed)
    revision = planned.revision
    if planned.parent is not None and not (stored or planned.gone or revision.edited):
        return planned.parent.ref
    return revisions.publish(
        planned.url,
        revision,
        planned.parent,
        fields=planned.fields,
        source=planned.source,
        settings=planned.config.model_dump(mode="json"),
        change=f"{stored} added, {revision.edited} edited, {planned.gone} left out",
        added=written,
        rejects=Counter(reject.reason for reject in rejects),
        rejects_file=listed,
        license=planned.config.license,
        identity=planned.identity,
    )


def adopt_in_place(
    tars: TarSet, url: str, config: IngestConfig, *, mode: Mode, mapper: Mapper, progress: Progress | None = None
) -> DatasetRef:
    """Make tars that others wrote a dataset where they lie.

    Raises:
        RequestError: they cannot be read in place, or do not fit the dataset they are to be appended to.
        WorkError: more samples were rejected than the error budget allows, or somebody else published.
    """
    url = storage.absolute(url)
    version = manifest.current(url)
    parent = None if version is None else Dataset.open(DatasetRef(url=url, digest=version))
    rows = Rows.of(parent) if mode.append and parent is not None else None
    before = parent.manifest.classes if rows is not None and parent is not None else ()
    tell = partial(progress, "read") if progress else None
    adopted = adopt(tars, url, config, mapper=mapper, before=before, progress=tell)
    done = manifest.find(url, adopted.identity) if rows is None else None
    if done is not None:
        manifest.point(done.url, done.digest, expected=version)
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
    excluded = load(before)
    if not len(excluded):
        return ref
    dataset = Dataset.open(ref)
    rows = Rows.of(dataset)
    why = dict(zip(*(excluded.column(name).to_pylist() for name in ("origin", "reason")), strict=True))
    origins = enumerate(rows.table.column("origin").to_pylist())
    return leave_out(dataset, rows, {place: why[origin] for place, origin in origins if origin in why})


def leave_out_near_copies(ref: DatasetRef) -> DatasetRef:
    """The version without photographs that look like others in it; they stay out when the corpus comes again."""
    dataset = Dataset.open(ref)
    rows = Rows.of(dataset)
    found = copies(dataset, AuditConfig())
    return leave_out(dataset, rows, found.reasons(rows.table.column("source").to_pylist()))
