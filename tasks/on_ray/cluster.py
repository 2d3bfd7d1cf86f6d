"""Connect to a Ray cluster: a running one is borrowed and never shut down; else one is started here, and stopped."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import ray

import tasks
import vitcore
from tasks.settings import Settings

_LONGEST_SESSION = 40
"""Characters of a session folder's path below which Ray's sockets stay within the 107 bytes a socket path may have."""


_kept: ContextVar[contextlib.ExitStack | None] = ContextVar("kept", default=None)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Inside, a connection that `connected` makes stays for the next one; it is given back at the end of this block."""
    with contextlib.ExitStack() as stack:
        token = _kept.set(stack)
        try:
            yield
        finally:
            _kept.reset(token)


@contextlib.contextmanager
def connected(settings: Settings) -> Iterator[None]:
    """Inside, Ray tasks and actors can be used.

    A connection that this process already has is used as it is. With `settings.ray_address` the cluster there is
    borrowed: our code is shipped to its nodes, and leaving only disconnects. Otherwise a cluster of this machine's
    cores is started and stopped; so it is where `ray_address` is a dashboard, which takes jobs and no connections.
    """
    stack = _kept.get()
    if ray.is_initialized():
        yield
    elif stack is not None:
        stack.enter_context(_connection(settings))
        yield
    else:
        with _connection(settings):
            yield


@contextlib.contextmanager
def _connection(settings: Settings) -> Iterator[None]:
    quiet: dict[str, Any] = {
        "log_to_driver": settings.verbose,
        "logging_level": logging.INFO if settings.verbose else logging.ERROR,
    }
    with contextlib.ExitStack() as stack:
        stack.callback(ray.shutdown)
        if settings.ray_address is not None and settings.jobs_address is None:
            packages = [str(Path(package.__file__).parent) for package in (tasks, vitcore) if package.__file__]
            environment = {"py_modules": packages, "env_vars": settings.worker_environment()}
            ray.init(settings.ray_address, runtime_env=environment, **quiet)
        else:
            ray.init(
                "local",  # whatever RAY_ADDRESS says
                num_cpus=os.cpu_count(),
                include_dashboard=False,
                _temp_dir=str(stack.enter_context(_session_folder(settings.home))),
                runtime_env={"env_vars": settings.worker_environment()},
                **quiet,
            )
        yield


def cores() -> int:
    """CPU cores of the connected cluster."""
    return int(_resources().get("CPU", 1))


def gpus() -> int:
    """GPUs of the connected cluster."""
    return int(_resources().get("GPU", 0))


def held() -> dict[str, tuple[float, float]]:
    """Of the connected cluster's cores and GPUs, how many other work holds, and how many there are; empty: none."""
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    there = {kind: total for kind, total in _resources().items() if kind in ("CPU", "GPU")}
    return {kind: (total - free.get(kind, 0), total) for kind, total in there.items() if free.get(kind, 0) < total}


def _resources() -> dict[str, float]:
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _session_folder(home: Path) -> Iterator[Path]:
    """Where Ray keeps sockets and logs: under `home` when its path is short enough for a socket, else in /tmp."""
    folder = home / "ray"
    if len(str(folder)) <= _LONGEST_SESSION:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        _drop_old_sessions(folder)
        return
    scratch = Path(tempfile.mkdtemp(prefix="vit-ray-", dir="/tmp"))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _drop_old_sessions(folder: Path, keep: int = 3) -> None:
    """Logs of the last sessions help; those of a hundred nights fill a disk."""
    sessions = sorted(path for path in folder.glob("session_*") if path.is_dir() and not path.is_symlink())
    for path in sessions[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
