"""One Ray cluster, one Prefect server and one MLflow store for all tests of flows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.settings import Settings, load
from tests.s3 import S3

COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 70), "red": (200, 50, 40)}


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 40 noisy photographs that a small network tells apart in a few steps."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for number in range(40):
            noise = rng.normal(0, 25, (40, 40, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:03d}.jpg", quality=90)
    return root


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory, s3: S3) -> Iterator[Settings]:
    """Settings of a fresh home, with a Prefect server and a Ray cluster that all tests of the session share.

    The cluster starts once the environment names the S3 server, as its workers inherit it.
    """
    from prefect.testing.utilities import prefect_test_harness

    from tasks.on_ray.cluster import connected

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIT_HOME", str(tmp_path_factory.mktemp("home")))
        for name in ("VIT_TRACKING", "VIT_API", "VIT_CHECKPOINTS", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        settings = load()
        with prefect_test_harness(server_startup_timeout=180), connected(settings):
            yield settings
