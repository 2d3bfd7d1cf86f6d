"""The scalars of a training's state."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Progress:
    """How far a training is. Sample order and randomness follow from `step` alone."""

    step: int = 0
    """Optimiser steps done."""
    skipped: list[int] = field(default_factory=list)
    """Steps whose update was dropped."""
    bad_samples: int = 0
    """Unreadable samples met so far."""
    best_step: int = 0
    """Step of the best model so far; 0: none yet."""
    best_metrics: dict[str, float] = field(default_factory=dict)
    """Validation metrics of the best model."""
