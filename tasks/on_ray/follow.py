"""Follow a job: what it says reaches this process line by line, each once, over however many connections it takes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import aiohttp
from ray.job_submission import JobDetails

from tasks.on_ray.jobs import Jobs
from tasks.on_ray.mailbox import Message
from vitcore.errors import WorkError

MARK = "@vit "
"""What stands before a message for the process that follows; everything else in a job's log is for people."""
_QUIET_S = 60.0  # without a word: the connection may be dead
_LOST_S = 900.0  # without an answer: the cluster is
_LONGEST_PAUSE_S = 15.0
_REPLAY_S = 0.25  # between two pieces of a log that is sent as fast as it can be


def line_of(message: Message) -> str:
    """A message as a line of a job's log."""
    return f"{MARK}{json.dumps(message)}\n"


def follow(jobs: Jobs, job_id: str, *, listener: Callable[[Message], None], relay: Callable[[str], None]) -> JobDetails:
    """Wait for the end of a job.

    Args:
        jobs: its cluster.
        job_id: its id.
        listener: told the messages. Of progress only the newest, where a log is caught up with.
        relay: told every other line.
    Raises:
        WorkError: the cluster has not answered for a quarter of an hour; the job may go on.
    """
    reader = _Reader(listener, relay)
    answered, failures = time.monotonic(), 0
    while True:
        whole = False
        try:
            before = reader.read
            asyncio.run(_tail(jobs, job_id, reader))
            whole = True
        except (OSError, RuntimeError, TimeoutError, aiohttp.ClientError):
            failures = 0 if reader.read > before else failures + 1
        try:
            details = jobs.details(job_id)
            answered = time.monotonic()
        except WorkError as error:
            if time.monotonic() - answered > _LOST_S:
                raise WorkError(f"{error}; job {job_id} may go on, and the same command attaches to it") from error
        else:
            if details.status.is_terminal():
                if not whole:
                    reader.take(0, jobs.log(job_id))
                reader.finish()
                return details
        time.sleep(min(_LONGEST_PAUSE_S, 0.5 * 2 ** min(failures, 6)))


async def _tail(jobs: Jobs, job_id: str, reader: _Reader) -> None:
    """One connection: the log from its beginning, of which the reader skips what it has."""
    position = 0
    pieces = jobs.client.tail_job_logs(job_id)
    while True:
        try:
            piece = await asyncio.wait_for(anext(pieces), _QUIET_S)
        except StopAsyncIteration:
            return
        reader.take(position, piece)
        position += len(piece)


class _Reader:
    """Cuts a growing log into lines and tells them apart."""

    def __init__(self, listener: Callable[[Message], None], relay: Callable[[str], None]) -> None:
        self._listener, self._relay = listener, relay
        self.read = 0
        """Characters of the log taken so far."""
        self._rest = ""
        self._progress: Message | None = None
        self._took = time.monotonic()

    def take(self, position: int, piece: str) -> None:
        """A piece of the log that begins at `position`."""
        new = piece[max(0, self.read - position) :]
        self.read = max(self.read, position + len(piece))
        *lines, self._rest = (self._rest + new).split("\n")
        for line in lines:
            self._say(line)
        replayed = time.monotonic() - self._took < _REPLAY_S
        self._took = time.monotonic()
        if not replayed:
            self._show_progress()

    def finish(self) -> None:
        """The log is complete."""
        if self._rest:
            self._say(self._rest)
        self._show_progress()

    def _say(self, line: str) -> None:
        before, mark, text = line.partition(MARK)  # a worker's line may be cut by one of ours
        message = _parsed(text) if mark else None
        if message is None:
            before = line
        elif "total" in message:
            self._progress = message
        else:
            self._listener(message)
        if before.strip():
            self._relay(before)

    def _show_progress(self) -> None:
        if self._progress is not None:
            self._listener(self._progress)
            self._progress = None


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        message = json.loads(text)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
