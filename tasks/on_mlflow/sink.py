"""Training's live reports to MLflow: `MlflowSink` returns at once, a thread of its own does the talking.

Each step stands exactly once in the run, whatever is killed or resumed: every step is sent with the marker metric
`attempt` in the same transaction, a new sink asks for the marker's highest step and lets nothing at or below it pass
again. A record is on disk (`tasks.on_mlflow.spool`) before `log` returns and leaves it when the server has it.
"""

from __future__ import annotations

import logging
import math
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.on_mlflow.client import client, local_root
from tasks.on_mlflow.events import event_tag
from tasks.on_mlflow.runs import latest_steps, metric_name
from tasks.on_mlflow.spool import Record, Spool, read_segment

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MARKER = "attempt"
"""Metric logged with every step: which attempt at this run logged it. Its highest step is what a new attempt skips."""
ATTEMPTS = "vit.attempts"
"""Tag with the number of sinks that have reported to a run."""


_log = logging.getLogger(__name__)

_CALL_METRICS = 900  # MLflow takes 1,000 entities a call; a call is a transaction, so a step is never cut in two
_CALL_EVENTS = 80
_INTERVAL_S = 0.5
_LONGEST_WAIT_S = 30.0
_HOPELESS = frozenset({"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"})  # no use asking again


@dataclass(slots=True)
class _Backlog:
    """Records the server does not have yet, oldest first, and the segments they are in."""

    records: list[Record] = field(default_factory=list)
    segments: list[Path] = field(default_factory=list)


class MlflowSink:
    """A `vitcore.sink.Sink` that reports to one MLflow run.

    Args:
        tracking_uri: MLflow server or SQLite file; need not be up.
        run_id: the run; it must exist.
        spool: folder for what the server has not taken yet; default: ``spool`` beside a local database, else in the
            machine's temporary folder. Give a folder that a restarted process sees again.
        interval: seconds between calls to the server.
        deadline: seconds that `close` waits for the server.
    """

    def __init__(
        self,
        tracking_uri: str,
        run_id: str,
        *,
        spool: Path | None = None,
        interval: float = _INTERVAL_S,
        deadline: float = 60.0,
    ) -> None:
        self._uri, self._run_id = tracking_uri, run_id
        self._interval, self._deadline = interval, deadline
        self._spool = Spool(spool or _default_spool(tracking_uri), run_id)
        self._pending: list[Record] = []
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._infinite: set[str] = set()
        self._mlflow: MlflowClient | None = None
        self._attempt = 0
        self._sent_step = -1
        self._sent_names: set[str] = set()
        self._thread = threading.Thread(target=self._work, name=f"mlflow-sink-{run_id[:8]}", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the metrics of a step with the time of this call; infinities are kept as NaN, with an event."""
        values = {metric_name(name): float(value) for name, value in metrics.items()}
        infinite = [name for name, value in values.items() if math.isinf(value)]
        for name in infinite:  # MLflow would store ±1.8e308, which flattens every chart it is in
            values[name] = math.nan
        self._say(Record(_now_ms(), step, values))
        if new := [name for name in infinite if name not in self._infinite]:
            self._infinite.update(new)
            self.event(step, "infinite", f"{', '.join(new)}: infinite here, charted as NaN")

    def event(self, step: int, kind: str, detail: str) -> None:
        """Keep an event; it becomes a tag of the run."""
        self._say(Record(_now_ms(), step, kind=kind, detail=detail))

    def progress(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """MLflow keeps metrics, not progress."""

    def close(self) -> None:
        """Send what is left; what the server does not take before the deadline stays in the spool, with a warning."""
        self._closing.set()
        with self._changed:
            self._changed.notify()
        self._thread.join(self._deadline)
        if self._thread.is_alive():
            self._given_up.set()
            _log.warning(
                "MLflow (%s) did not take everything within %.0f s; the rest waits in %s and is sent by the next "
                "attempt at this run",
                self._uri,
                self._deadline,
                self._spool.folder,
            )

    def _say(self, record: Record) -> None:
        with self._changed:
            self._spool.append(record)
            self._pending.append(record)
            self._changed.notify()

    def _work(self) -> None:
        """The thread: gather for an interval, send, and after a failure wait longer and longer before trying again."""
        backlog, failures = _Backlog(), 0
        while not self._given_up.is_set():
            with self._changed:
                self._changed.wait_for(
                    lambda: self._mlflow is None or bool(self._pending or backlog.records) or self._closing.is_set()
                )
            if self._mlflow is not None:
                self._closing.wait(self._interval)
            try:
                self._take(backlog)
                if self._mlflow is None:
                    self._mlflow = self._begin(backlog)
                self._send(self._mlflow, backlog)
                failures = 0
            except Exception as error:  # whatever it is, the training goes on and nothing is dropped
                failures += 1
                if failures == 1:
                    _log.warning("MLflow (%s) does not answer; metrics wait on disk: %s", self._uri, error)
                pause = min(_LONGEST_WAIT_S, self._interval * 2**failures)
                self._given_up.wait(min(pause, 1.0)) if self._closing.is_set() else self._closing.wait(pause)
                continue
            if self._closing.is_set() and not self._pending:
                return

    def _take(self, backlog: _Backlog) -> None:
        """Move what was said meanwhile, and the segment it is in, to the backlog."""
        with self._changed:
            backlog.records += self._pending
            self._pending = []
            segment = self._spool.rotate()
        if segment is not None:
            backlog.segments.append(segment)

    def _begin(self, backlog: _Backlog) -> MlflowClient:
        """First contact: what does the run hold already, which attempt is this, and what did earlier ones leave?"""
        mlflow = client(self._uri)
        run = mlflow.get_run(self._run_id)
        steps = latest_steps(run)
        self._sent_step = steps.get(MARKER, -1)
        self._sent_names = {name for name, step in steps.items() if step == self._sent_step}
        attempt = int(run.data.tags.get(ATTEMPTS, "0")) + 1
        mlflow.set_tag(self._run_id, ATTEMPTS, str(attempt))
        self._attempt = attempt
        leftovers = self._spool.leftovers()
        backlog.records[:0] = [record for path in leftovers for record in read_segment(path)]
        backlog.segments[:0] = leftovers
        return mlflow

    def _send(self, mlflow: MlflowClient, backlog: _Backlog) -> None:
        """Send the backlog, many steps a call; on an exception what was not sent is still in it."""
        while backlog.records:
            count = _fits(backlog.records)
            self._send_call(mlflow, backlog.records[:count])
            del backlog.records[:count]
        for segment in backlog.segments:
            segment.unlink(missing_ok=True)
        backlog.segments.clear()

    def _send_call(self, mlflow: MlflowClient, records: list[Record]) -> None:
        """One transaction; if the server will never take it, find the record at fault and put it aside."""
        from mlflow.entities import Metric, RunTag
        from mlflow.exceptions import MlflowException

        step, names = self._sent_step, set(self._sent_names)
        metrics: list[Metric] = []
        tags: list[RunTag] = []
        for record in records:
            if record.kind:
                tags.append(RunTag(*event_tag(record.time_ms, record.step, record.kind, record.detail)))
                continue
            if record.step < step:
                continue
            if record.step > step:
                step, names = record.step, set()
            values = {MARKER: float(self._attempt), **record.metrics}
            new = [Metric(name, value, record.time_ms, step) for name, value in values.items() if name not in names]
            names.update(values)
            metrics += new
        try:
            mlflow.log_batch(self._run_id, metrics=metrics, tags=tags)
        except MlflowException as error:
            if error.error_code not in _HOPELESS:
                raise
            self._split(mlflow, records, error)
            return
        self._sent_step, self._sent_names = step, names

    def _split(self, mlflow: MlflowClient, records: list[Record], error: Exception) -> None:
        if len(records) == 1:
            _log.warning("MLflow refuses a record, now in %s: %s", self._spool.reject(records[0]), error)
            return
        middle = len(records) // 2
        self._send_call(mlflow, records[:middle])
        self._send_call(mlflow, records[middle:])


def _fits(records: list[Record]) -> int:
    """How many of the first records go into one call; at least one."""
    metrics = events = 0
    for count, record in enumerate(records):
        metrics += len(record.metrics) + 1
        events += bool(record.kind)
        if count and (metrics > _CALL_METRICS or events > _CALL_EVENTS):
            return count
    return len(records)


def _default_spool(tracking_uri: str) -> Path:
    return (local_root(tracking_uri) or Path(tempfile.gettempdir()) / "vit") / "spool"


def _now_ms() -> int:
    return int(time.time() * 1000)
