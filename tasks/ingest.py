"""Ingest: photographs are read and shards written on the cluster, the version is published from here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

from prefect import task

from tasks.on_ray.cluster import connected
from tasks.on_ray.map import map_unordered
from tasks.progress import Track
from tasks.settings import Settings
from tasks.stages import StagePlan
from tasks.story import tell, track
from vitcore.data.corpus.sources import recognise
from vitcore.data.dataset import edit as edits
from vitcore.data.dataset import manifest
from vitcore.data.dataset.manifest import Dataset, DatasetRef
from vitcore.data.ingest.ingest import existing, ingest, plan
from vitcore.data.ingest.mode import Mode
from vitcore.data.ingest.parallel import threads
from vitcore.data.ingest_config import IngestConfig

_FEW = 8  # pieces of work (shards, tars, thousands of photographs) for which starting Ray on this machine does not pay


@task(name="ingest")
def ingest_corpus(source: str, url: str, config: IngestConfig, settings: Settings, *, mode: Mode) -> DatasetRef:
    """The dataset version that a corpus and settings give at `url`; what is finished is not done again."""
    before = manifest.current(url)
    with _Shown(settings) as shown:
        published = ingest(source, url, config, mode=mode, mapper=partial(_spread, settings), progress=shown)
    if published.digest == before:
        tell(settings, f"ingest: {published.url} is up to date, version {published.digest}")
    else:
        tell(settings, f"ingest: {Dataset.open(published).manifest.change}; version {published.digest}")
    return published


@task(name="edit")
def edit_dataset(url: str, table: str, settings: Settings, *, delete: bool) -> DatasetRef:
    """The version in which the samples that a table names say what it says, or are left out."""
    before = manifest.current(url)
    published = edits.edit(url, table, delete=delete)
    change = Dataset.open(published).manifest.change if published.digest != before else "nothing changed"
    tell(settings, f"edit: {change}; version {published.digest}")
    return published


def plan_ingest(source: str, url: str, config: IngestConfig, *, mode: Mode) -> tuple[StagePlan, DatasetRef | None]:
    """What `ingest_corpus` would do, and the version if it is there."""
    found = recognise(source, config)
    if found.tars is not None and config.tars == "adopt":
        reason = f"{len(found.tars.tars)} tars to adopt as they stand; those that were read before are not read again"
        return StagePlan("ingest", "", "run", reason), None
    planned = plan(found, url, config, mode=mode)
    known = None if mode.fresh else existing(planned)
    if known is not None:
        return StagePlan("ingest", planned.identity, "done", f"{known.url} has version {known.digest}"), known
    change = f"{planned.new} to add, {planned.revision.edited} to edit, {planned.gone} to leave out"
    return StagePlan("ingest", planned.identity, "run", f"asked for again: {change}" if mode.fresh else change), None


def _spread(settings: Settings, function: Callable[[Any], Any], inputs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """The cluster, where one is there already or there is much to do; else threads of this process."""
    if (settings.ray_address is None or settings.jobs_address is not None) and len(inputs) <= _FEW:
        yield from threads()(function, inputs)
        return
    with connected(settings):
        yield from map_unordered(function, inputs)


class _Shown(ExitStack):
    """Progress of an ingest: one bar at a time."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._phase = ""
        self._bar: Track | None = None

    def __call__(self, phase: Literal["read", "write"], done: int, total: int) -> None:
        if phase != self._phase or self._bar is None:
            self.close()
            self._phase = phase
            unit = "photographs" if phase == "read" else "shards"
            self._bar = self.enter_context(track(self._settings, phase, total, unit))
        self._bar.update(done, total)
