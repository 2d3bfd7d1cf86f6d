"""How far something long is: a bar with rate and remaining time on a terminal, elsewhere a line every few seconds.

    with Progress().track("checking", total=120, unit="shards") as track:
        for done, shard in enumerate(shards, 1):
            ...
            track.update(done, bad=3)

Where lines should go somewhere else (the logger of a flow run), say so: ``Progress(emit=get_run_logger().info)``.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn, TaskID

EVERY_S = 5.0
"""Least seconds between two lines of one track."""

Emit = Callable[[str], None]


class Track(ABC):
    """One thing's way to its end. Made by `Progress.track`; may be updated from any thread."""

    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._started = time.monotonic()
        self._first: tuple[int, float] | None = None
        self._done = 0
        self._detail = ""

    def update(self, done: int, total: int | None = None, /, **metrics: float) -> None:
        """`done` of the total are done; `total` where it is only known now; `metrics` are shown beside."""
        self._total = total or self._total
        if self._first is None:  # the rate counts from here: a resumed run starts in the middle, workers start late
            self._first = done, time.monotonic()
        self._done = done
        self._detail = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self._show()

    @abstractmethod
    def finish(self) -> None:
        """The end was reached."""

    @abstractmethod
    def _show(self) -> None:
        """Make the present state seen."""

    def _rate(self) -> float:
        """Units a second since the first update; 0 while unknown."""
        if self._first is None:
            return 0.0
        done, since = self._first
        seconds = time.monotonic() - since
        return (self._done - done) / seconds if seconds > 0 else 0.0


class _LineTrack(Track):
    def __init__(self, label: str, total: int | None, unit: str, emit: Emit, every: float) -> None:
        super().__init__(label, total, unit)
        self._emit, self._every = emit, every
        self._spoken = self._started

    def finish(self) -> None:
        seconds = time.monotonic() - self._started
        if self._spoken > self._started or seconds > self._every:
            self._emit(f"{self._label}: {self._done:,} {self._unit} in {_clock(seconds)}")

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._spoken < self._every:
            return
        self._spoken = now
        rate = self._rate()
        parts = [f"{self._label}: {self._done:,}{f'/{self._total:,}' if self._total else ''} {self._unit}"]
        if rate > 0:
            parts.append(f"{rate:.3g} {self._unit}/s")
            if self._total:
                parts.append(f"{_clock((self._total - self._done) / rate)} left")
        self._emit(", ".join([*parts, self._detail] if self._detail else parts))


class _BarTrack(Track):
    def __init__(self, label: str, total: int | None, unit: str, bars: Bars) -> None:
        super().__init__(label, total, unit)
        self._bars = bars
        self._id: TaskID = bars.add_task(label, total=total, unit=unit, rate="", detail="")

    def finish(self) -> None:
        """The bar disappears with its block."""

    def _show(self) -> None:
        rate = self._rate()
        said = f"{rate:.3g} {self._unit}/s" if rate > 0 else ""
        self._bars.update(self._id, completed=self._done, total=self._total, rate=said, detail=self._detail)


class Progress:
    """Where progress is shown.

    Args:
        emit: takes a line; default: a bar on stderr where that is a terminal, else lines on stderr.
        every: least seconds between two lines of one track.
    """

    def __init__(self, emit: Emit | None = None, *, every: float = EVERY_S) -> None:
        self._emit, self._every = emit, every

    @contextmanager
    def track(self, label: str, total: int | None = None, unit: str = "steps") -> Iterator[Track]:
        """Follow one thing; its bar disappears and its last line is said when the block ends well.

        Args:
            label: what is being done, such as ``"training"``.
            total: how many there are; None: not known.
            unit: what is counted, in the plural.
        """
        if self._emit is not None or not sys.stderr.isatty():
            track: Track = _LineTrack(label, total, unit, self._emit or _to_stderr, self._every)
            yield track
            track.finish()
            return
        from rich.console import Console
        from rich.progress import Progress as Bars

        with Bars(*_columns(), console=Console(stderr=True), transient=True) as bars:
            yield _BarTrack(label, total, unit, bars)


def _columns() -> list[ProgressColumn]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    return [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[rate]}", style="dim", markup=False),
        TextColumn("{task.fields[detail]}", style="dim", markup=False),
    ]


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _clock(seconds: float) -> str:
    """Seconds as people say them: ``8 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
