"""What was said but not yet kept by the server, on disk: survives a server that is away and a process that is killed.

    <folder>/<run id>.<attempt token>.<number>.jsonl    segments: appended by one process, deleted once sent
    <folder>/<run id>.rejected.jsonl                    records the server will never take

A segment is closed when its records are about to be sent, so that deleting it cannot lose what came after.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """The metrics of a step, or an event (`kind` is not empty), with its own time."""

    time_ms: int
    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    kind: str = ""
    detail: str = ""

    def line(self) -> bytes:
        """The record as a line of a segment (NaN is written as Python's JSON writes and reads it)."""
        tree: dict[str, Any] = {"time_ms": self.time_ms, "step": self.step}
        tree |= {"kind": self.kind, "detail": self.detail} if self.kind else {"metrics": dict(self.metrics)}
        return json.dumps(tree).encode() + b"\n"


class Spool:
    """The segments of one process. `append` costs some 10 µs; the bytes outlive the process, not the machine."""

    def __init__(self, folder: Path, run_id: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._run_id = folder, run_id
        self._stem = f"{run_id}.{os.getpid()}-{secrets.token_hex(3)}"
        self._number = 0
        self._file: int | None = None

    def append(self, record: Record) -> None:
        """Keep a record."""
        if self._file is None:
            self._file = os.open(self._segment(), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(self._file, record.line())

    def rotate(self) -> Path | None:
        """Close the current segment and say where it is; none when nothing was appended since the last call."""
        if self._file is None:
            return None
        os.close(self._file)
        self._file = None
        closed = self._segment()
        self._number += 1
        return closed

    def leftovers(self) -> list[Path]:
        """Segments of this run that earlier processes left, oldest first."""
        found = [path for path in self.folder.glob(f"{self._run_id}.*.*.jsonl") if not path.name.startswith(self._stem)]
        return sorted(found, key=lambda path: (path.stat().st_mtime, path.name))

    def reject(self, record: Record) -> Path:
        """Put a record the server refuses where a person can find it."""
        path = self.folder / f"{self._run_id}.rejected.jsonl"
        with path.open("ab") as file:
            file.write(record.line())
        return path

    def _segment(self) -> Path:
        return self.folder / f"{self._stem}.{self._number:06d}.jsonl"


def read_segment(path: Path) -> list[Record]:
    """The whole records of a segment; a last line torn by a kill is not one."""
    records = []
    for line in path.read_bytes().splitlines():
        try:
            tree = json.loads(line)
        except ValueError:
            continue
        records.append(Record(**tree))
    return records
