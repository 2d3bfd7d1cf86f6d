"""Raw photographs become a dataset version, night after night; what a version says can be corrected."""

from __future__ import annotations

from prefect import flow

from tasks.ingest import edit_dataset, ingest_corpus, plan_ingest
from tasks.settings import load
from tasks.stages import StagePlan
from vitcore import storage
from vitcore.data.dataset.manifest import DatasetRef
from vitcore.data.ingest.mode import Mode
from vitcore.data.ingest_config import IngestConfig


@flow(name="ingest", flow_run_name="ingest {source}")
def ingest(
    source: str, url: str, config: IngestConfig | None = None, append: bool = False, fresh: bool = False
) -> DatasetRef:
    """Make the dataset at `url` what the corpus at `source` says, or append the corpus to it."""
    mode = Mode(append=append, fresh=fresh)
    return ingest_corpus(storage.absolute(source), storage.absolute(url), config or IngestConfig(), load(), mode=mode)


@flow(name="edit", flow_run_name="edit {url}")
def edit(url: str, table: str, delete: bool = False) -> DatasetRef:
    """Publish a version of the dataset at `url` in which a table's samples say what it says, or are left out."""
    return edit_dataset(storage.absolute(url), storage.absolute(table), load(), delete=delete)


def plan(
    source: str, url: str, config: IngestConfig | None = None, append: bool = False, fresh: bool = False
) -> list[StagePlan]:
    """What `ingest` would do."""
    mode = Mode(append=append, fresh=fresh)
    stage, _ = plan_ingest(storage.absolute(source), storage.absolute(url), config or IngestConfig(), mode=mode)
    return [stage]
