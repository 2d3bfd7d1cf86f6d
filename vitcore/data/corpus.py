"""A listed corpus: which photographs there are, with labels, captions, groups and given splits, before any is read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""How a split may be spelt → its name here."""


@dataclass(frozen=True, slots=True)
class Item:
    """A photograph of a corpus, not yet read."""

    url: str
    source: str
    """Its name inside the corpus; kept with the dataset, so never an absolute path."""
    label: str | None = None
    captions: tuple[str, ...] = ()
    group: str | None = None
    split: str | None = None


@dataclass(frozen=True, slots=True)
class Reject:
    """A photograph that was left out."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """A listed corpus."""

    source: str
    """Absolute path or URL of the folder or table."""
    fields: tuple[str, ...]
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    rejects: tuple[Reject, ...] = ()


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in the order their labels count: numbers by value, names by spelling."""
    distinct = set(names)
    if all(re.fullmatch(r"-?[0-9]+", name) for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))
