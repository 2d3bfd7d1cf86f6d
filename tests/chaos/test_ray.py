"""Kills through Ray: a worker, then the whole command, then the same command again. Nothing lost, nothing twice."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.chaos.training import Training, living, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

STEPS, CHECKPOINT = 120, 10


def test_killed_worker_and_killed_command(tmp_path: Path, home: Path) -> None:
    training = Training(tmp_path, home, STEPS, CHECKPOINT)
    command, environment, steps = training.command, training.environment, training.steps
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_for(lambda: len(steps()) >= 2 * CHECKPOINT, 150, "the first twenty steps")
    workers = living(home, "RayTrainWorker")
    assert len(workers) == 2
    workers[1].kill()
    reached = max(steps())
    wait_for(lambda: max(steps()) >= reached + 2 * CHECKPOINT, 90, "training after a worker's death")

    first.send_signal(signal.SIGKILL)
    first.wait()
    wait_for(lambda: not living(home, "RayTrainWorker"), 30, "the end of the orphaned workers")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr

    run = training.run()
    assert run.info.status == "FINISHED"
    assert steps() == list(range(1, STEPS + 1))
    assert run.data.tags["vit.attempts"] == "3"
    assert "resumed" in done.stderr
    assert training.versions() == 1
    wait_for(lambda: not living(home), 20, "the end of every process")
