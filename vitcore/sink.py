"""Where training reports to. vitcore calls a `Sink` and does not know what stands behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Sink(Protocol):
    """Receives what a training has to say; called on rank 0 only, must return at once."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of one step, each step once."""

    def event(self, step: int, kind: str, detail: str) -> None:
        """Something worth a line: ``resumed``, ``checkpoint``, ``best``, ``skipped``."""

    def progress(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """How far the training is: `step` of `total` done."""

    def close(self) -> None:
        """Everything said before must be kept when this returns."""


class NullSink:
    """Says nothing."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Drop the metrics."""

    def event(self, step: int, kind: str, detail: str) -> None:
        """Drop the event."""

    def progress(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Drop the progress."""

    def close(self) -> None:
        """Nothing to keep."""


class JsonlSink:
    """One JSON object a line in a file: the sink of ``python -m vitcore.train`` and of tests."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write ``{"step": …, metric: value, …}``."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")

    def event(self, step: int, kind: str, detail: str) -> None:
        """Write ``{"step": …, "event": …, "detail": …}``."""
        self._file.write(json.dumps({"step": step, "event": kind, "detail": detail}) + "\n")

    def progress(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """The file holds metrics, not progress."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()
