"""Ingest: plan here, write the shards on the cluster, publish here."""

from __future__ import annotations

from prefect import task

from tasks.on_ray.cluster import connected
from tasks.on_ray.map import map_unordered
from tasks.settings import Settings
from tasks.stages import StagePlan
from tasks.story import tell, track
from vitcore import storage
from vitcore.data import manifest
from vitcore.data.ingest import Plan, plan, publish
from vitcore.data.ingest_config import IngestConfig
from vitcore.data.manifest import DatasetRef
from vitcore.data.shards import write_shard


@task(name="ingest")
def ingest_corpus(source: str, url: str, config: IngestConfig, settings: Settings, *, fresh: bool) -> DatasetRef:
    """The dataset version that a corpus and settings give at `url`; shards that are finished are not written again."""
    with track(settings, "read", None, "photographs") as bar:
        planned = plan(source, config, progress=bar.update)
    known = None if fresh else manifest.find(url, planned.identity)
    if known is not None:
        manifest.point(known.url, known.digest)
        tell(settings, f"ingest: {url} is up to date, version {known.digest}")
        return known
    jobs = planned.jobs(url)
    results = []
    with connected(settings), track(settings, "write shards", len(jobs), "shards") as bar:
        for _, result in map_unordered(write_shard, jobs):
            results.append(result)
            bar.update(len(results))
    published = publish(planned, results, url)
    tell(settings, f"ingest: {planned.samples} photographs in {len(jobs)} shards, version {published.digest}")
    return published


def plan_ingest(source: str, url: str, config: IngestConfig, *, fresh: bool) -> tuple[StagePlan, DatasetRef | None]:
    """What `ingest_corpus` would do, and the version if it is there."""
    planned: Plan = plan(source, config)
    known = manifest.find(storage.absolute(url), planned.identity)
    if known is not None and not fresh:
        return StagePlan("ingest", planned.identity, "done", f"{known.url} has version {known.digest}"), known
    reason = "asked for again" if known else "no version of this corpus and these settings is published there"
    return StagePlan("ingest", planned.identity, "run", reason), None
