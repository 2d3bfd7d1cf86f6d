"""What the tests that disturb share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.chaos.training import living


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home of its own; whatever still runs in it at the end is stopped."""
    yield tmp_path / "home"
    for process in living(tmp_path / "home"):
        with contextlib.suppress(psutil.Error):
            process.kill()
