"""Budgets of a training as people write them: ``"12 hours"``, ``"200 gpu-hours"``, ``"90 min"``, ``"3 days"``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_HOURS = {"min": 1 / 60, "minute": 1 / 60, "minutes": 1 / 60, "hour": 1.0, "hours": 1.0, "day": 24.0, "days": 24.0}
_DEVICE_HOURS = frozenset({"gpu-hour", "gpu-hours"})
_PATTERN = re.compile(rf"\s*([0-9]*\.?[0-9]+)\s*({'|'.join([*_HOURS, *_DEVICE_HOURS])})\s*")


@dataclass(frozen=True, slots=True)
class Budget:
    """What a training may take at most."""

    hours: float
    """Above 0."""
    of: Literal["wall", "devices"]
    """``wall``: hours on the clock. ``devices``: those times the number of GPUs (of workers, on CPUs)."""

    def allows(self, hours: float, devices: int) -> bool:
        """Whether a training of `hours` on `devices` stays within it."""
        return self.spent(hours, devices) <= self.hours

    def spent(self, hours: float, devices: int) -> float:
        """What such a training takes, in this budget's own unit."""
        return hours if self.of == "wall" else hours * devices

    def __str__(self) -> str:
        return f"{self.hours:.3g} {'hours' if self.of == 'wall' else 'GPU-hours'}"


def parse(text: str) -> Budget:
    """Read a budget.

    Raises:
        ValueError: it is none.
    """
    match = _PATTERN.fullmatch(text.lower())
    if match is None or not float(match[1]):
        raise ValueError(
            f'{text!r} is not a budget; write for example "12 hours", "90 min", "3 days" or "200 gpu-hours"'
        )
    value, unit = float(match[1]), match[2]
    return Budget(value, "devices") if unit in _DEVICE_HOURS else Budget(value * _HOURS[unit], "wall")
