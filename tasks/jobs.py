"""Orders of a flow: carried out here, or by a job on a cluster that any flow can attach to, and that a cancel stops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from prefect import get_client
from prefect.runtime import flow_run

from tasks.on_mlflow import runs
from tasks.on_ray.follow import follow
from tasks.on_ray.jobs import Job, Jobs
from tasks.on_ray.mailbox import Message
from tasks.orders import JobRequest, OverfitOrder, TrainOrder
from tasks.settings import Settings, load
from tasks.story import note, tell
from vitcore.errors import RequestError, WorkError


def carry_out(
    identity: str,
    name: str,
    make_order: Callable[[], TrainOrder | OverfitOrder | None],
    settings: Settings,
    listener: Callable[[Message], None],
    *,
    fresh: bool = False,
) -> Any:
    """Carry out an order in this process, or, where `settings.jobs_address` says so, as a job on a cluster.

    A job of the identity that is live already is attached to, whoever submitted it: there are never two. Whoever is
    interrupted while waiting (a cancelled flow run, Ctrl-C) stops it.

    Args:
        identity: name of the product.
        name: of the job, for people.
        make_order: called only where the order is not being carried out yet; None where it need not be any more.
        settings: endpoints and folders.
        listener: told progress and events.
        fresh: stop what is live and begin anew.
    Returns:
        The order's answer, a JSON value; None where there was no order.
    Raises:
        RequestError, WorkError: as the order raised them, or the job was stopped or died.
    """
    if settings.jobs_address is None:
        order = make_order()
        return order and order.carry_out(settings, listener)
    refuse_password(settings.tracking_uri)
    jobs = Jobs(settings.jobs_address)
    job = _find_or_submit(jobs, identity, name, make_order, settings, fresh=fresh)
    if job is None:
        return None
    _tag_flow_run(job)
    try:
        return _wait(jobs, job, settings, listener)
    except BaseException as error:
        if not isinstance(error, Exception):  # cancelled or interrupted
            tell(settings, f"stopping job {job.id}")
            jobs.stop(job.id)
        _close_run(settings, job, error)
        raise


def refuse_password(tracking_uri: str) -> None:
    """A job's request is no place for a secret.

    Raises:
        RequestError: the URI of the tracking server holds one.
    """
    if "@" in urlsplit(tracking_uri).netloc:
        raise RequestError(
            "the address of the MLflow server holds a password, which a job would show: take it out and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, here and where the cluster's nodes are started"
        )


def stop_jobs_of(settings: Settings, run: str, tags: list[str]) -> list[Job]:
    """Stop the live jobs that a flow run submitted or attached to; those stopped."""
    if settings.jobs_address is None:
        return []
    jobs = Jobs(settings.jobs_address)
    mine = [job for job in jobs.all() if not job.over and (job.flow_run == run or job.id in tags)]
    return [jobs.stop(job.id) for job in mine]


def on_cancellation(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook of the training flows. Prefect calls it in another process, so jobs are found by the flow run."""
    stop_jobs_of(load(), str(flow_run.id), list(flow_run.tags))


def _find_or_submit(
    jobs: Jobs,
    identity: str,
    name: str,
    make_order: Callable[[], TrainOrder | OverfitOrder | None],
    settings: Settings,
    *,
    fresh: bool,
) -> Job | None:
    attempts = jobs.attempts(identity)
    for job in attempts:
        if not job.over and fresh:
            tell(settings, f"stopping job {job.id}: the work is wanted anew")
            jobs.stop(job.id)
        elif not job.over:
            tell(settings, f"attached to job {job.id}, {job.state.lower()} since {job.since:%Y-%m-%d %H:%M} UTC")
            return job
    order = make_order()
    if order is None:
        return None
    request = JobRequest(order=order, tracking_uri=settings.tracking_uri, checkpoints=settings.checkpoints)
    run = order.run_id if isinstance(order, TrainOrder) else ""
    mine = flow_run.get_id() or ""
    attempt = 1 + max((job.attempt for job in attempts), default=0)
    metadata = {"name": name, "identity": identity, "flow_run": mine, "run": run}
    try:
        job = jobs.submit(identity, attempt, request.model_dump_json(), metadata)
    except BaseException as error:
        if run:
            runs.fail_with(settings.tracking_uri, run, error)
        raise
    tell(settings, f"{'submitted' if job.flow_run == (mine or None) else 'attached to'} job {job.id}")
    return job


def _wait(jobs: Jobs, job: Job, settings: Settings, listener: Callable[[Message], None]) -> Any:
    """Follow a job to its end; its answer."""
    last: dict[str, Any] = {}

    def hear(message: Message) -> None:
        if "answer" in message or "failure" in message:
            last.update(message)
        else:
            listener(message)

    said = ""

    def relay(line: str) -> None:
        nonlocal said
        said = line
        note(line)

    details = follow(jobs, job.id, listener=hear, relay=relay)
    state = str(details.status.value)
    if state == "SUCCEEDED":
        return last.get("answer")
    if state == "STOPPED":
        raise WorkError(f"job {job.id} was stopped; the same command goes on where it was")
    if "failure" in last:
        raise (RequestError if last["kind"] == "request" else WorkError)(last["failure"])
    raise WorkError(
        f"job {job.id} died, exit code {details.driver_exit_code}: {said or details.message}; "
        f"`vit jobs --logs {job.id}` shows all it said, and the same command goes on where it was"
    )


def _close_run(settings: Settings, job: Job, error: BaseException) -> None:
    """A job that was killed could not close its run itself."""
    if job.run is not None and runs.get(settings.tracking_uri, job.run).status == "RUNNING":
        runs.fail_with(settings.tracking_uri, job.run, error)


def _tag_flow_run(job: Job) -> None:
    """Write the job's id to the flow run, so that it is found from there: by a person, a cancel, `vit jobs`."""
    mine = flow_run.get_id()
    if mine is None:
        return
    with get_client(sync_client=True) as client:
        tags = client.read_flow_run(UUID(mine)).tags
        client.update_flow_run(UUID(mine), tags=[*tags, job.id])
