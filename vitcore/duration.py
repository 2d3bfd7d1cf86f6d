"""Durations that carry their unit where they are written: ``"90 epochs"``, ``"10k steps"``, ``"30 min"``, ``"5%"``.

In a recipe a duration is a plain string, checked and brought to one spelling when the recipe is validated, so that two
spellings of one duration give one digest.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator

Unit = Literal["epochs", "steps", "samples", "min", "%"]

_UNITS: dict[str, Unit] = {
    "epoch": "epochs",
    "epochs": "epochs",
    "step": "steps",
    "steps": "steps",
    "sample": "samples",
    "samples": "samples",
    "min": "min",
    "minute": "min",
    "minutes": "min",
    "%": "%",
}
_FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}
# The units are spelt out, so that the m of "min" is not taken for a million.
_PATTERN = re.compile(rf"\s*([0-9]*\.?[0-9]+)\s*([kKmMbB]?)\s*({'|'.join(_UNITS)})\s*")


@dataclass(frozen=True, slots=True)
class Span:
    """A parsed duration: `value` in `unit`."""

    value: float
    unit: Unit

    def __str__(self) -> str:
        number = f"{self.value:g}" if self.value < 1e6 else f"{self.value:.0f}"
        return f"{number}%" if self.unit == "%" else f"{number} {self.unit}"

    def steps(self, *, per_epoch: float, batch_size: int, total: int | None = None) -> int:
        """Whole steps (at least 0) of this span.

        Args:
            per_epoch: steps in one epoch of the training split (need not be whole).
            batch_size: samples in a step.
            total: steps of the whole run, which ``%`` refers to.
        Raises:
            ValueError: a span in minutes has no number of steps; ``%`` without `total`.
        """
        if self.unit == "steps":
            return round(self.value)
        if self.unit == "epochs":
            return math.ceil(self.value * per_epoch - 1e-9)
        if self.unit == "samples":
            return math.ceil(self.value / batch_size)
        if self.unit == "%" and total is not None:
            return round(self.value / 100 * total)
        raise ValueError(f"{self} has no length in steps here")


def parse(text: str) -> Span:
    """Read a duration such as ``"90 epochs"``, ``"10k steps"``, ``"1.2M samples"``, ``"30 min"`` or ``"5%"``."""
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(f'{text!r} is not a duration; write for example "90 epochs", "10k steps", "30 min" or "5%"')
    return Span(float(match.group(1)) * _FACTORS[match.group(2).lower()], _UNITS[match.group(3)])


def _checked(*units: Unit) -> AfterValidator:
    def check(text: str) -> str:
        span = parse(text)
        if span.unit not in units:
            raise ValueError(f"{text!r} must be given in one of: {', '.join(units)}")
        return str(span)

    return AfterValidator(check)


TrainDuration = Annotated[str, _checked("epochs", "steps", "samples")]
"""How long to train."""
PartDuration = Annotated[str, _checked("epochs", "steps", "samples", "%")]
"""A part of the training, such as the warm-up."""
TrainInterval = Annotated[str, _checked("epochs", "steps", "samples", "%")]
"""How often something that is part of what is learned happens (validation chooses the best checkpoint)."""
WallInterval = Annotated[str, _checked("steps", "min")]
"""How often something that changes nothing that is learned happens (a checkpoint)."""
Minutes = Annotated[str, _checked("min")]
"""How long to wait for something."""
