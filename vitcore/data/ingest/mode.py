"""How an ingest is asked for, and whom it tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Progress = Callable[[Literal["read", "write"], int, int], None]
"""Told how many photographs of how many are read, then how many shards of how many are written."""


@dataclass(frozen=True)
class Mode:
    """How a corpus meets the version that is there."""

    append: bool = False
    """Keep what the corpus does not name."""
    fresh: bool = False
    """Read and write everything again."""
