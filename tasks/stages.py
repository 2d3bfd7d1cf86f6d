"""What a stage would do, said before it does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One line of a dry run."""

    stage: str
    """Its verb: ``ingest``, ``pretrain``, …"""
    identity: str
    """Name of its product; see `vitcore.identity.identity`. Empty while it depends on a stage that has not run."""
    state: Literal["done", "run"]
    """Whether the product exists, or the stage would run."""
    reason: str
    """Why, in a few words."""
