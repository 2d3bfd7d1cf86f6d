"""Kills through Ray: a worker, then the whole command, then the same command again. Nothing lost, nothing twice."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from vitcore.data.ingest.ingest import ingest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

STEPS, CHECKPOINT = 120, 10
COMMAND = [sys.executable, "-m", "flows.cli.main", "pretrain", "vit_tiny_cpu"]
SETTINGS = [
    *("--data.image-size", "64"),
    *("--model.patch", "8"),
    *("--model.width", "64"),
    *("--model.depth", "4"),
    *("--model.heads", "2"),
    *("--train.batch-size", "32"),
    *("--train.duration", f"{STEPS} steps"),
    *("--eval.every", "40 steps"),
    *("--eval.resize", "64"),
    *("--compute.checkpoint-every", f"{CHECKPOINT} steps"),
]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home of its own; whatever still runs in it at the end is stopped."""
    yield tmp_path / "home"
    for process in living(tmp_path / "home"):
        with contextlib.suppress(psutil.Error):
            process.kill()


def living(home: Path, named: str = "") -> list[psutil.Process]:
    """Processes that were started for this home."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        with contextlib.suppress(psutil.Error):
            mine = process.environ().get("VIT_HOME") == str(home) and process.info["status"] != psutil.STATUS_ZOMBIE
            if mine and named in " ".join(process.info["cmdline"] or ()):
                found.append(process)
    return found


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.2)


def test_killed_worker_and_killed_command(tmp_path: Path, home: Path) -> None:
    rng = np.random.default_rng(0)
    for name, shade in (("dark", 60), ("light", 190)):
        (tmp_path / "photographs" / name).mkdir(parents=True)
        for number in range(60):
            pixels = np.clip(rng.normal(shade, 40, (72, 72, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photographs" / name / f"{number}.jpg")
    data = ingest(str(tmp_path / "photographs"), str(tmp_path / "shades"))
    home.mkdir()
    environment = {**os.environ, "VIT_HOME": str(home)}
    environment.pop("PREFECT_API_URL", None)
    command = [*COMMAND, "--data", data.url, *SETTINGS]
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")

    def steps() -> list[int]:
        runs = client.search_runs([experiment.experiment_id]) if (experiment := experiment_of()) else []
        points = client.get_metric_history(runs[0].info.run_id, "train/loss") if runs else []
        return [point.step for point in points]

    def experiment_of():  # type: ignore[no-untyped-def]
        return client.get_experiment_by_name("shades")

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

    (run,) = client.search_runs([experiment_of().experiment_id])
    assert run.info.status == "FINISHED"
    assert steps() == list(range(1, STEPS + 1))
    assert run.data.tags["vit.attempts"] == "3"
    assert "resumed" in done.stderr
    assert len(client.search_model_versions("name = 'shades'")) == 1
    wait_for(lambda: not living(home), 20, "the end of every process")
