"""A training by the command line that is to be disturbed: its command, its processes, and what MLflow knows of it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from PIL import Image

from vitcore.data.ingest.ingest import ingest

SETTINGS = [
    *("--data.image-size", "64"),
    *("--model.patch", "8"),
    *("--model.width", "64"),
    *("--model.depth", "4"),
    *("--model.heads", "2"),
    *("--train.batch-size", "32"),
    *("--eval.every", "40 steps"),
    *("--eval.resize", "64"),
]


class Training:
    """`vit pretrain` of a small ViT on photographs of two shades, with a home of its own.

    Args:
        folder: for the photographs.
        home: of the command.
        steps: how long it lasts.
        checkpoint: steps between two checkpoints.
        arguments: more of them.
    """

    def __init__(self, folder: Path, home: Path, steps: int, checkpoint: int, *arguments: str) -> None:
        data = dataset_of_shades(folder)
        home.mkdir()
        self.environment = {**os.environ, "VIT_HOME": str(home)}
        self.environment.pop("PREFECT_API_URL", None)
        self.command = [
            *(sys.executable, "-m", "flows.cli.main", "pretrain", "vit_tiny_cpu", "--data", data, *SETTINGS),
            *("--train.duration", f"{steps} steps", "--compute.checkpoint-every", f"{checkpoint} steps", *arguments),
        ]
        self._client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")

    def run(self) -> Run:
        """Its one run."""
        (run,) = self._runs()
        return run

    def steps(self) -> list[int]:
        """Every step that MLflow has a loss of."""
        runs = self._runs()
        points = self._client.get_metric_history(runs[0].info.run_id, "train/loss") if runs else []
        return [point.step for point in points]

    def versions(self) -> int:
        """How many versions were registered."""
        return len(self._client.search_model_versions("name = 'shades'"))

    def _runs(self) -> list[Run]:
        experiment = self._client.get_experiment_by_name("shades")
        return self._client.search_runs([experiment.experiment_id]) if experiment else []


def dataset_of_shades(folder: Path) -> str:
    """URL of a dataset of dark and of light photographs, ingested under `folder`."""
    rng = np.random.default_rng(0)
    for name, shade in (("dark", 60), ("light", 190)):
        (folder / "photographs" / name).mkdir(parents=True)
        for number in range(60):
            pixels = np.clip(rng.normal(shade, 40, (72, 72, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photographs" / name / f"{number}.jpg")
    return ingest(str(folder / "photographs"), str(folder / "shades")).url


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
