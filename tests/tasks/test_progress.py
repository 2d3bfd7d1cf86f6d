"""Progress: lines at a measured pace where there is no terminal, a bar where there is one."""

from __future__ import annotations

import io
import sys

import pytest

from tasks import progress
from tasks.progress import Progress


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_lines_come_at_most_every_few_seconds(clock: Clock) -> None:
    said: list[str] = []
    with Progress(said.append, every=5).track("training", 100, "steps") as track:
        for step in range(1, 101):
            clock.now += 0.2
            track.update(step, loss=0.5)
    assert 3 <= len(said) <= 5
    assert said[0].startswith("training: 25/100 steps, ")
    assert said[0].endswith("left, loss 0.5")
    assert said[-1] == "training: 100 steps in 20 s"


def test_what_is_short_says_nothing(clock: Clock) -> None:
    said: list[str] = []
    with Progress(said.append).track("checking", 3, "shards") as track:
        for shard in range(3):
            clock.now += 0.1
            track.update(shard + 1)
    assert said == []


def test_the_rate_of_a_resumed_run_counts_from_where_it_began(clock: Clock) -> None:
    said: list[str] = []
    with Progress(said.append, every=5).track("training", 1000, "steps") as track:
        track.update(900)
        clock.now += 10
        track.update(910)
    assert said[0] == "training: 910/1,000 steps, 1 steps/s, 1 min 30 s left"


def test_a_total_may_come_late(clock: Clock) -> None:
    said: list[str] = []
    with Progress(said.append, every=1).track("read", unit="photographs") as track:
        clock.now += 2
        track.update(10, 40)
    assert said[0].startswith("read: 10/40 photographs")


def test_a_failure_is_not_called_finished(clock: Clock) -> None:
    said: list[str] = []
    with pytest.raises(RuntimeError), Progress(said.append).track("training", 2) as track:
        clock.now += 60
        track.update(1)
        raise RuntimeError
    assert len(said) == 1


def test_without_a_terminal_lines_go_to_stderr(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(every=1).track("training", 2) as track:
        clock.now += 2
        track.update(1)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 2


def test_on_a_terminal_a_bar_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Progress().track("training [1]", 10, "steps") as track:
        track.update(5, loss=0.25)
    assert "training [1]" in terminal.getvalue()
    assert "5/10" in terminal.getvalue()
