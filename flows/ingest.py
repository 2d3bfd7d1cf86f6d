"""Raw photographs become a dataset version."""

from __future__ import annotations

from prefect import flow

from tasks.ingest import ingest_corpus, plan_ingest
from tasks.settings import load
from tasks.stages import StagePlan
from vitcore import storage
from vitcore.data.ingest_config import IngestConfig
from vitcore.data.manifest import DatasetRef


@flow(name="ingest", flow_run_name="ingest {source}")
def ingest(source: str, url: str, config: IngestConfig | None = None, fresh: bool = False) -> DatasetRef:
    """Publish the corpus at `source` as a dataset at `url`; a version that is there already is recognised."""
    return ingest_corpus(storage.absolute(source), storage.absolute(url), config or IngestConfig(), load(), fresh=fresh)


def plan(source: str, url: str, config: IngestConfig | None = None, fresh: bool = False) -> list[StagePlan]:
    """What `ingest` would do."""
    stage, _ = plan_ingest(storage.absolute(source), storage.absolute(url), config or IngestConfig(), fresh=fresh)
    return [stage]
