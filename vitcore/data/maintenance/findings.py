"""What is said of a dataset: one sentence a thing, how bad it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

_NAMED = 3  # examples named in a sentence


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing seen."""

    severity: Literal["error", "warning", "note"]
    """`error`: unfit to train on. `warning`: fit, but look at it. `note`: good to know."""
    text: str
    """One sentence: what is wrong, and what to do."""


def fit(findings: Iterable[Finding]) -> bool:
    """Whether nothing found forbids training."""
    return all(finding.severity != "error" for finding in findings)


def some(names: Iterable[str]) -> str:
    """The first few of many names."""
    shown = list(islice(names, _NAMED + 1))
    return ", ".join(shown[:_NAMED]) + (", …" if len(shown) > _NAMED else "")


def in_bytes(count: float) -> str:
    """A number of bytes as people say it: ``3.2 GB``."""
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"
