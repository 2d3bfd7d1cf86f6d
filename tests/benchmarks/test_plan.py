"""A plan against the training it is of: hours predicted by a probe, over those it takes, validations and checkpoints
included. Shared cores move both: each is brought to the speed of the same machine's matrix products at its time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flows.plan import plan
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.ingest.ingest import ingest
from vitcore.data.ingest_config import IngestConfig
from vitcore.estimate.hardware import product_peak
from vitcore.recipe import Compute, apply_overrides
from vitcore.recipes import find
from vitcore.sink import NullSink
from vitcore.train.loop import train
from vitcore.train.request import TrainRequest
from vitcore.world import World

TOLERANCE = 0.15
CORES = os.cpu_count() or 1
TRAININGS: dict[str, dict[str, Any]] = {
    "vit_tiny_cpu": {"train.duration": "120 steps", "eval.every": "30 steps"},
    "deit3_tiny_cpu": {"train.duration": "100 steps", "eval.every": "50 steps"},
    "cnn_tiny_cpu": {"train.duration": "120 steps", "eval.every": "40 steps"},
}


class Clocked(NullSink):
    """Notes the machine's speed while the training runs: a product now and then, whose time is taken away again."""

    def __init__(self) -> None:
        self.speeds: list[float] = []
        self.took = 0.0

    def progress(self, step: int, total: int, metrics: Any) -> None:
        if step % 20 == 0:
            began = time.perf_counter()
            self.speeds.append(product_peak(torch.float32, CORES))
            self.took += time.perf_counter() - began


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """1,500 photographs of noise in three colours, 40 pixels wide: 1,200 to train on."""
    root = tmp_path_factory.mktemp("plan")
    rng = np.random.default_rng(3)
    for split, count in {"train": 400, "val": 100}.items():
        for label, name in enumerate("rgb"):
            folder = root / "raw" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 160, (40, 40, 3))
                pixels[:, :, label] += 90
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)
    return Dataset.open(ingest(str(root / "raw"), str(root / "dataset"), IngestConfig()))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_takes_as_long_as_planned(
    name: str, photographs: Dataset, tmp_path: Path, report: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIT_HOME", str(tmp_path / ".vit"))
    compute = Compute(workers=1, threads=CORES, checkpoint_every="50 steps")
    before = product_peak(torch.float32, CORES)
    row = plan(
        name, [photographs.url], overrides=TRAININGS[name], compute=compute, gpu="cpu", network=1e9, probe="on"
    ).rows[0]
    then = (before + product_peak(torch.float32, CORES)) / 2
    request = TrainRequest(
        recipe=apply_overrides(find(name), TRAININGS[name]),
        compute=compute,
        data=photographs.ref,
        checkpoints=str(tmp_path / "run"),
    )
    clock = Clocked()
    began = time.perf_counter()
    train(request, World(), clock)
    took = time.perf_counter() - began - clock.took
    now = sum(clock.speeds) / len(clock.speeds)
    predicted = row.hours * 3600
    ratio = predicted * then / (took * now)
    report(
        f"{name}: planned {predicted:.1f} s, took {took:.1f} s; {ratio:.3f} of it at equal speed of products "
        f"({then / 1e9:.0f} and {now / 1e9:.0f} GFLOP/s), {1 - TOLERANCE} to {1 + TOLERANCE} wanted"
    )
    assert abs(ratio - 1) <= TOLERANCE
