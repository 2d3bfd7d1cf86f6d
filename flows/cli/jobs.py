"""`vit jobs`: what of ours runs on a cluster, what it says, and an end for what nobody waits for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows.cli import console, results
from flows.cli.arguments import parse
from flows.cli.session import Session
from vitcore.errors import RequestError

if TYPE_CHECKING:
    from tasks.job_flows import ListedJob
    from tasks.on_ray.jobs import Job


@dataclass(frozen=True)
class Arguments:
    """The arguments of the verb."""

    all: bool = False
    """Show jobs that are over, too."""
    stop: str | None = None
    """Stop the job with this id; whoever waits for it is told."""
    stop_orphans: bool = False
    """Stop the jobs whose flow runs have all ended; needs the Prefect API that knows them (--api)."""
    logs: str | None = None
    """Print everything that the job with this id has said."""
    json: bool = False
    """Print JSON."""


def run(argv: list[str], session: Session) -> int:
    """Run the verb; returns the exit code."""
    given = parse(
        Arguments,
        argv,
        verb="jobs",
        about="Trainings on the Ray cluster whose dashboard RAY_ADDRESS names (http://host:8265): list them, read what "
        "they say, stop one, or stop those that nobody waits for.",
        examples=(
            "vit jobs",
            "vit jobs --all --json",
            "vit jobs --logs vit-train-0a1b2c3d4e5f6071-1",
            "vit jobs --stop vit-train-0a1b2c3d4e5f6071-1",
            "vit jobs --stop-orphans --api http://prefect:4200/api",
        ),
    )
    if sum((given.stop is not None, given.stop_orphans, given.logs is not None)) > 1:
        raise RequestError("take one of --stop, --stop-orphans and --logs at a time")
    settings = session.start()
    from tasks import job_flows

    jobs = job_flows.cluster(settings)
    if given.logs is not None:
        console.write(jobs.log(jobs.get(given.logs).id).rstrip("\n"))
        return 0
    if given.stop is not None:
        return _stopped([jobs.stop(given.stop)], json=given.json)
    if given.stop_orphans:
        return _stopped(job_flows.stop_orphans(jobs, settings), json=given.json)
    found = [entry for entry in job_flows.listed(jobs, settings) if given.all or not entry.job.over]
    return _list(found, json=given.json, all=given.all)


def _stopped(jobs: list[Job], *, json: bool) -> int:
    if json:
        console.as_json([results.plain(job) for job in jobs])
        return 0
    for job in jobs:
        console.done(f"job {job.id}: {job.state.lower()}")
    if not jobs:
        console.say("no job is without a flow run")
    return 0


def _list(entries: list[ListedJob], *, json: bool, all: bool) -> int:
    if json:
        rows = [
            {**results.plain(entry.job), "flow_state": entry.flow_state, "orphaned": entry.orphaned}
            for entry in entries
        ]
        console.as_json(rows)
        return 0
    if not entries:
        console.say("the cluster has no job of ours" if all else "no job of ours runs; `vit jobs --all` shows old ones")
        return 0
    console.table(
        ("job", "attempt", "name", "state", "since (UTC)", "flow run", "its state"),
        [
            (
                entry.job.id,
                entry.job.attempt,
                entry.job.name,
                entry.job.state.lower(),
                f"{entry.job.since:%Y-%m-%d %H:%M}" if entry.job.since else None,
                entry.job.flow_run,
                "orphaned" if entry.orphaned else entry.flow_state,
            )
            for entry in entries
        ],
    )
    return 0
