"""The jobs of a cluster beside the flow runs that wait for them: which has outlived all of its own?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun

from tasks.on_ray.jobs import Job, Jobs
from tasks.settings import Settings
from vitcore.errors import RequestError

_NO_DASHBOARD = "`vit jobs` asks a cluster's dashboard: set RAY_ADDRESS to its address, such as http://host:8265"
_PAGE = 200


@dataclass(frozen=True, slots=True)
class ListedJob:
    """A job, and how the flow runs that want it are."""

    job: Job
    flow_state: str | None
    """State of the liveliest flow run that submitted it or attached to it; None: no Prefect API at hand knows one."""
    orphaned: bool
    """Whether it goes on while every flow run that wanted it has ended."""


def cluster(settings: Settings) -> Jobs:
    """The jobs of the cluster that the settings name.

    Raises:
        RequestError: they name no dashboard.
    """
    if settings.jobs_address is None:
        raise RequestError(_NO_DASHBOARD)
    return Jobs(settings.jobs_address)


def listed(jobs: Jobs, settings: Settings) -> list[ListedJob]:
    """All jobs of ours, oldest first, with their flow runs where `settings.api` names a Prefect API."""
    found = jobs.all()
    live = [job for job in found if not job.over]
    runs = _flow_runs(live) if settings.api is not None and live else []
    return [_beside(job, runs) for job in found]


def stop_orphans(jobs: Jobs, settings: Settings) -> list[Job]:
    """Stop the jobs that have outlived every flow run that wanted them; those stopped.

    Raises:
        RequestError: no Prefect API is at hand to know the flow runs.
    """
    if settings.api is None:
        raise RequestError("whether a flow run lives is known to its Prefect API: name it with --api or VIT_API")
    return [jobs.stop(entry.job.id) for entry in listed(jobs, settings) if entry.orphaned]


def _beside(job: Job, runs: Sequence[FlowRun]) -> ListedJob:
    mine = [run for run in runs if str(run.id) == job.flow_run or job.id in run.tags]
    live = [run for run in mine if run.state is not None and not run.state.is_final()]
    chosen = (live or sorted(mine, key=lambda run: str(run.end_time)))[-1:]
    state = chosen[0].state if chosen else None
    return ListedJob(
        job=job,
        flow_state=state.name if state else None,
        orphaned=not job.over and bool(mine) and not live,
    )


def _flow_runs(jobs: Sequence[Job]) -> list[FlowRun]:
    """The flow runs that submitted some jobs, or attached to them."""
    submitters = [UUID(job.flow_run) for job in jobs if job.flow_run]
    filters = [FlowRunFilter(id=FlowRunFilterId(any_=submitters))] if submitters else []
    filters.append(FlowRunFilter(tags=FlowRunFilterTags(any_=[job.id for job in jobs])))
    found: dict[UUID, FlowRun] = {}
    with get_client(sync_client=True) as client:
        for each in filters:
            page = client.read_flow_runs(flow_run_filter=each, limit=_PAGE)
            found.update({run.id: run for run in page})
    return list(found.values())
