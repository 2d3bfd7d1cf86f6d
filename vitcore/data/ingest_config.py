"""How a raw corpus becomes a dataset: settings only, quick to import for the command line's help."""

from __future__ import annotations

import math

from pydantic import field_validator, model_validator

from vitcore.recipe import Config


class TableConfig(Config):
    """Columns of a source that is a table. A column left out is taken where the table has one of its usual name."""

    image: str = "image"
    """Column with the image's path, relative to the table's folder."""
    label: str | None = None
    """Column with the class, a name or a whole number; default: `label`."""
    caption: str | None = None
    """Column with a caption or a list of captions; default: `caption` or `captions`."""
    group: str | None = None
    """Column that keeps its photographs together in one split (a patient, a scene); default: `group`."""
    split: str | None = None
    """Column with the given split; default: `split`. Empty cells are assigned by hash."""


class SplitFractions(Config):
    """Shares of the splits, for photographs whose split the corpus does not give."""

    train: float = 0.8
    """Share to train on."""
    val: float = 0.1
    """Share to choose checkpoints and champions with."""
    test: float = 0.1
    """Share to report on, and for nothing else."""

    @model_validator(mode="after")
    def _sum(self) -> SplitFractions:
        shares = (self.train, self.val, self.test)
        if min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise ValueError(f"train, val and test must be shares that add up to 1, not {shares}")
        return self


class IngestConfig(Config):
    """How a raw corpus becomes a dataset."""

    shard_mb: float = 64
    """Target size of a shard, in MB (10^6 bytes)."""
    resize: int | None = 256
    """Short side photographs are brought down to, in pixels; none: every size stays."""
    quality: int = 92
    """JPEG quality of photographs that are written anew; those that are small and plain already pass untouched."""
    splits: SplitFractions = SplitFractions()
    """Shares of the splits; given ones come first."""
    seed: int = 0
    """Seed of the order in the shards; splits do not depend on it."""
    max_pixels: int = 1 << 26
    """Larger photographs are rejected before they are decoded."""
    error_budget: float = 0.01
    """Fraction of photographs that may be rejected before the ingest fails."""
    table: TableConfig = TableConfig()
    """Columns, where the source is a table."""

    @field_validator("shard_mb", "resize", "max_pixels")
    @classmethod
    def _positive(cls, value: float | None) -> float | None:
        if value is not None and value <= 0:
            raise ValueError("must be more than 0")
        return value

    @field_validator("error_budget")
    @classmethod
    def _fraction(cls, value: float) -> float:
        if not 0 <= value <= 1:
            raise ValueError("must be a fraction from 0 to 1")
        return value

    @field_validator("quality")
    @classmethod
    def _percent(cls, value: int) -> int:
        if not 1 <= value <= 100:
            raise ValueError("must be from 1 to 100")
        return value
