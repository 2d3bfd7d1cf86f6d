"""The jobs of ours on a cluster: submitted once under a name of their own, found again by it, stopped.

A job is called ``vit-<identity>-<attempt>``. Ray keeps names unique, so of two that submit the same one at once, one
starts it and the other finds it. What a job says of itself (`Job`) anybody who reaches the dashboard can read: names
and numbers, no secret.
"""

from __future__ import annotations

import logging
import re
import shlex
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

import tasks
import vitcore
from tasks.settings import job_environment
from vitcore.errors import RequestError, WorkError

T = TypeVar("T")

REQUEST_FILE = "request.json"
"""What a job is asked, in the folder it starts in."""
_TALKATIVE = (
    "ray._private.runtime_env.packaging",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
)
_NAME = re.compile(r"vit-(?P<identity>[a-z_]+-[0-9a-f]{16})-(?P<attempt>\d+)")
_PORTS = {"http": 80, "https": 443}
_CONNECT_S = 5.0
_STOP_S = 60.0
_AGENT_S = 60.0  # of a cluster that has just been started, until it can take jobs
_NO_AGENT = "No available agent"
_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    """A job of ours, as the cluster knows it."""

    id: str
    identity: str
    """Name of its product."""
    attempt: int
    """1 for the first job of the identity on this cluster."""
    name: str
    """What it is to people: the registered model or the dataset, and the recipe."""
    state: str
    """``PENDING``, ``RUNNING``, ``STOPPED``, ``SUCCEEDED`` or ``FAILED``."""
    since: datetime | None
    """When it was submitted, or, once over, when it ended."""
    flow_run: str | None
    """Id of the flow run that submitted it."""
    run: str | None
    """MLflow run that it reports to."""

    @property
    def over(self) -> bool:
        """Whether it has ended, well or not."""
        return JobStatus(self.state).is_terminal()


class Jobs:
    """The jobs of the cluster whose dashboard is at `address` (``http://host:8265``).

    A token (`RAY_AUTH_MODE=token`) is Ray's own business: it is sent as a header, and stands in no job.

    Raises:
        RequestError: the address is not one of a dashboard, or the token is missing or wrong.
        WorkError: nothing answers there.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.password or parts.username:
            raise RequestError("RAY_ADDRESS holds a password; a cluster's token goes into RAY_AUTH_TOKEN_PATH instead")
        self.address = address
        for name in _TALKATIVE:  # which Ray sets to INFO when it is imported
            logging.getLogger(name).setLevel(logging.WARNING)
        _require_answer(address, parts.hostname or "", parts.port or _PORTS[parts.scheme])
        self.client = self._ask(lambda: JobSubmissionClient(address))

    def all(self) -> list[Job]:
        """All jobs of ours, live or over, oldest first."""
        details = self._ask(self.client.list_jobs)
        found = [job for job in map(_job, details) if job is not None]
        return sorted(found, key=lambda job: (job.since or datetime.now(UTC), job.id))

    def attempts(self, identity: str) -> list[Job]:
        """The jobs of an identity, first attempt first."""
        return sorted((job for job in self.all() if job.identity == identity), key=lambda job: job.attempt)

    def get(self, job_id: str) -> Job:
        """A job by its id.

        Raises:
            RequestError: there is none of ours with this id.
        """
        found = next((job for job in self.all() if job.id == job_id), None)
        if found is None:
            raise RequestError(f"the cluster at {self.address} has no job {job_id!r} of ours; see `vit jobs`")
        return found

    def submit(self, identity: str, attempt: int, request: str, metadata: Mapping[str, str]) -> Job:
        """Start an attempt, with our code shipped to whatever node it runs on; where it is there already, find it.

        Args:
            identity: name of the product.
            attempt: one more than the last.
            request: JSON that `tasks.on_ray.job` reads; travels as a file, of any length.
            metadata: `name`, `flow_run` and `run` of the `Job`.
        """
        job_id = f"vit-{identity}-{attempt}"
        with TemporaryDirectory(prefix="vit-job-") as folder:
            (Path(folder) / REQUEST_FILE).write_text(request)
            environment = {
                "working_dir": folder,
                "py_modules": [str(Path(package.__file__).parent) for package in (tasks, vitcore) if package.__file__],
                "env_vars": job_environment(),
                "excludes": ["__pycache__"],
            }
            deadline = time.monotonic() + _AGENT_S
            while True:
                try:
                    self._ask(
                        lambda: self.client.submit_job(
                            entrypoint=_entrypoint(),
                            submission_id=job_id,
                            runtime_env=environment,
                            metadata={key: value for key, value in metadata.items() if value},
                        )
                    )
                    break
                except WorkError as error:
                    if job_id in {job.id for job in self.all()}:  # another was quicker
                        break
                    if _NO_AGENT not in str(error) or time.monotonic() > deadline:
                        raise
                    time.sleep(_POLL_S)
        return self.get(job_id)

    def stop(self, job_id: str, wait: float = _STOP_S) -> Job:
        """Stop a job and wait until it is over; one that is over stays as it is.

        Raises:
            WorkError: it is not over after `wait` seconds.
        """
        deadline = time.monotonic() + wait
        while not (job := self.get(job_id)).over:
            self._ask(lambda: self.client.stop_job(job_id))
            if time.monotonic() > deadline:
                raise WorkError(f"job {job_id} was told to stop {wait:.0f} s ago and is still {job.state}; ask again")
            time.sleep(_POLL_S)
        return job

    def details(self, job_id: str) -> JobDetails:
        """What Ray knows about a job."""
        return self._ask(lambda: self.client.get_job_info(job_id))

    def log(self, job_id: str) -> str:
        """Everything a job has said so far."""
        return self._ask(lambda: self.client.get_job_logs(job_id))

    def _ask(self, call: Callable[[], T]) -> T:
        """Call Ray's client; what goes wrong becomes one sentence."""
        try:
            return call()
        except AuthenticationError as error:
            raise RequestError(
                f"the cluster at {self.address} refuses the token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to "
                "the file that holds it"
            ) from error
        except OSError as error:  # those of requests are among them
            raise WorkError(f"the cluster at {self.address} does not answer: {_cause(error)}") from error
        except RuntimeError as error:
            raise WorkError(f"the cluster at {self.address} refuses: {str(error).strip().splitlines()[-1]}") from error


def _require_answer(address: str, host: str, port: int) -> None:
    """Fail in seconds where Ray's client would wait for minutes."""
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        raise WorkError(
            f"no Ray dashboard answers at {address} ({error.strerror or error}): start the cluster, or set RAY_ADDRESS "
            "to the address that `ray start --head` prints for its dashboard"
        ) from error


def _entrypoint() -> str:
    """The command of a job: by the Python of this virtual environment where the node has it, else by the node's."""
    module = f"-m tasks.on_ray.job {REQUEST_FILE}"
    if sys.prefix == sys.base_prefix:
        return f"exec python {module}"
    python = shlex.quote(sys.executable)
    return f'p={python}; [ -x "$p" ] || p=python; exec "$p" {module}'


def _job(details: Any) -> Job | None:
    """A job of ours; None for another's."""
    match = _NAME.fullmatch(details.submission_id or "")
    if match is None or details.type is not JobType.SUBMISSION:
        return None
    metadata = details.metadata or {}
    moment = details.end_time or details.start_time
    return Job(
        id=details.submission_id,
        identity=match["identity"],
        attempt=int(match["attempt"]),
        name=metadata.get("name", ""),
        state=str(details.status.value),
        since=None if moment is None else datetime.fromtimestamp(moment / 1000, UTC),
        flow_run=metadata.get("flow_run"),
        run=metadata.get("run"),
    )


def _cause(error: BaseException) -> str:
    """The innermost reason: what requests and urllib3 wrap around it helps nobody."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return str(error)
