"""The process of a job on a cluster: ``python -m tasks.on_ray.job request.json``.

It carries out one order on the cluster it finds itself in. What it says to the flow that follows are lines of its log
(`tasks.on_ray.follow`): progress and events as training says them, then an answer, or a failure with its kind.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Sequence
from pathlib import Path

import ray

from tasks.on_mlflow.client import local_root
from tasks.on_ray.cluster import held
from tasks.on_ray.follow import line_of
from tasks.on_ray.mailbox import Message
from tasks.on_ray.nodes import require_everywhere
from tasks.orders import JobRequest
from tasks.settings import Settings, load_in_job
from vitcore import storage
from vitcore.errors import RequestError, WorkError

_SAY_EVERY_S = 2.0
"""Seconds between two lines of progress: a log of days is read again by everyone who attaches."""


class _Speaker:
    """Says messages on stdout; progress now and then."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said = 0.0

    def __call__(self, message: Message) -> None:
        if "total" in message:
            if time.monotonic() - self._said < _SAY_EVERY_S and message["step"] != message["total"]:
                return
            self._said = time.monotonic()
        with self._lock:
            sys.stdout.write(line_of(message))
            sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out the order in a file; returns the exit code."""
    (path,) = sys.argv[1:] if argv is None else argv
    request = JobRequest.model_validate_json(Path(path).read_bytes())
    settings = load_in_job(request.tracking_uri, request.checkpoints)
    say = _Speaker()
    try:
        _connect(settings)
        _require_shared(settings)
        _announce_waiting(say)
        say({"answer": request.order.carry_out(settings, say)})
    except (RequestError, WorkError, OSError) as error:
        say({"failure": str(error), "kind": "request" if isinstance(error, RequestError) else "work"})
        return 1
    except Exception as error:
        traceback.print_exc()
        say({"failure": f"unexpected {type(error).__name__}: {error}", "kind": "work"})
        return 1
    return 0


def _connect(settings: Settings) -> None:
    """Join the cluster of the job, whose code comes with it. Workers are told its address: on a machine with several
    clusters, Ray's own helpers would not know which to ask.
    """
    address = {"env_vars": {"RAY_ADDRESS": settings.ray_address}} if settings.ray_address else None
    ray.init(runtime_env=address, logging_level=logging.WARNING)


def _require_shared(settings: Settings) -> None:
    """Checkpoints and MLflow must be the same for all nodes: hours later would be too late to find out."""
    mark = storage.join(settings.checkpoints, f".seen-{uuid.uuid4().hex[:8]}")
    share = "set VIT_CHECKPOINTS to a folder that all nodes share, such as s3://bucket/checkpoints"
    wanted = {mark: f"the checkpoints in {settings.checkpoints}: {share}"}
    root = local_root(settings.tracking_uri)
    if root is not None:
        wanted[str(root)] = f"MLflow in {root}: start a server and name it in VIT_TRACKING, such as http://host:5000"
    try:
        storage.write(mark, b"")
    except OSError as error:
        raise RequestError(f"the cluster cannot write checkpoints ({error}): {share}") from error
    try:
        code = require_everywhere(wanted)
    finally:
        storage.remove(mark)
    for address, place in code.items():
        sys.stdout.write(f"node {address} runs {place}\n")
    sys.stdout.flush()


def _announce_waiting(say: _Speaker) -> None:
    """A word where other work holds the cluster: Ray begins a training when its workers fit beside what runs."""
    taken = [f"{used:g} of {total:g} {kind}s" for kind, (used, total) in held().items()]
    if taken:
        detail = f"other work holds {', '.join(taken)}; begins when there is room"
        say({"event": "waiting", "step": 0, "detail": detail})


if __name__ == "__main__":
    sys.exit(main())
