"""From a raw corpus to a published dataset version: list, read, plan, write the new shards, publish.

    ref = ingest("photos", "data/birds")

The same call every night publishes what changed: new photographs are written, labels that changed are edited in the
index, vanished photographs are left out of the new version. Killed at any instant, the same call goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

from vitcore import storage
from vitcore.data.audit.audit import AuditConfig
from vitcore.data.audit.dedup import copies
from vitcore.data.corpus.sources import Source, read_corpus, recognise
from vitcore.data.dataset import manifest
from vitcore.data.dataset import revision as revisions
from vitcore.data.dataset.edit import leave_out
from vitcore.data.dataset.manifest import Dataset, DatasetRef
from vitcore.data.dataset.rows import Rows
from vitcore.data.ingest.adoption import adopt_in_place
from vitcore.data.ingest.examine import examine
from vitcore.data.ingest.mode import Mode, Progress
from vitcore.data.ingest.parallel import Mapper, threads
from vitcore.data.ingest.plan import Plan, lay_out
from vitcore.data.ingest.rejects import check_budget, list_rejects
from vitcore.data.ingest.shards import ShardResult, write_shard
from vitcore.data.ingest_config import IngestConfig
from vitcore.errors import RequestError, WorkError


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
    parent = Dataset.at(url)
    tell = partial(progress, "read") if progress else None
    glances = examine(corpus, url, config.resize, mapper, fresh=mode.fresh, progress=tell)
    return lay_out(url, corpus, glances, config, parent, append=mode.append, fresh=mode.fresh)


def known(planned: Plan) -> DatasetRef | None:
    """The version that holds what is planned, made the current one; None where there is none yet."""
    found = existing(planned)
    if found is not None:
        manifest.point(found.url, found.digest, expected=planned.parent.digest if planned.parent else None)
    return found


def existing(planned: Plan) -> DatasetRef | None:
    """The version that holds what is planned, current or not; None where there is none yet."""
    if planned.idle and planned.parent is not None:
        return planned.parent.ref
    return manifest.find(planned.url, planned.identity)


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


def leave_out_near_copies(ref: DatasetRef) -> DatasetRef:
    """The version without photographs that look like others in it; they stay out when the corpus comes again."""
    dataset = Dataset.open(ref)
    rows = Rows.of(dataset)
    found = copies(dataset, AuditConfig())
    return leave_out(dataset, rows, found.reasons(rows.table.column("source").to_pylist()))
