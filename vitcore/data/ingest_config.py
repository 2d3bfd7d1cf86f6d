"""How a raw corpus becomes a dataset: settings only, quick to import for the command line's help."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import field_validator, model_validator

from vitcore.recipe import Config


class TableConfig(Config):
    """Columns of a source that is a table. A column left out is taken where the table has one of its usual name."""

    image: str = "image"
    """Column with the image's path, relative to the table's folder."""
    label: str | None = None
    """Column with the class, a name or a whole number; default: `label`."""
    caption: tuple[str, ...] = ()
    """Columns with a caption or a list of captions, one or several; default: `captions`, `caption` or `text`."""
    group: str | None = None
    """Column that keeps its photographs together in one split (a patient, a scene); default: `group`."""
    split: str | None = None
    """Column with the given split; default: `split`. Empty cells are assigned by hash."""
    extra: Literal["all"] | tuple[str, ...] = "all"
    """Further columns that are kept as metadata: all, or the ones named; give an empty list for none."""

    @field_validator("caption", mode="before")
    @classmethod
    def _columns(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class TarConfig(Config):
    """What the members of tars say, where a source is tars. ``json.FIELD`` means a field of the sample's `.json`."""

    image: tuple[str, ...] = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "jp2", "avif")
    """Extensions that an image may have; of several in a sample the first named here is taken."""
    label: str | None = None
    """Member extension or `json.FIELD` with the class; default: `json.class`, `cls`, `label` or `json.label`."""
    caption: str | None = None
    """Member extension or `json.FIELD` with captions; default: `json.captions`, `txt`, `caption` or `json.caption`."""
    group: str | None = None
    """`json.FIELD` that keeps its photographs together in one split; default: none."""
    split: str = "auto"
    """`auto`: from the name of folder or tar (`train/`, `birds-train-0012.tar`), else by hash; `hash`; `json.FIELD`."""
    classes: str | None = None
    """File that names the classes of numbered labels: a name a line, or a JSON list or object; default: the numbers."""

    @field_validator("group")
    @classmethod
    def _field(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("json."):
            raise ValueError("must be json.FIELD, a field of the sample's .json")
        return value

    @field_validator("split")
    @classmethod
    def _split(cls, value: str) -> str:
        if value not in ("auto", "hash") and not value.startswith("json."):
            raise ValueError("must be auto, hash or json.FIELD")
        return value


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
    verify: Literal["decode", "header"] = "decode"
    """How far photographs that pass untouched are looked at. `decode`: decoded in full, which proves them whole.
    `header`: size from the header, and the file goes on to its end (PNG: with right checksums); many times as fast, but
    without hashes for the audit of near duplicates, with channel statistics of one in 64, and damage inside shows in
    training."""
    error_budget: float = 0.01
    """Fraction of photographs that may be rejected before the ingest fails."""
    dedup: Literal["none", "exact", "near"] = "none"
    """Of photographs with the same content (`exact`) or that look the same (`near`) only one stays, rather in test than
    in val than in train; the others are listed with the one that they copy."""
    license: str | None = None
    """Terms of the photographs (CC BY 4.0), kept with the dataset and shown on the cards of models trained on it."""
    table: TableConfig = TableConfig()
    """Columns, where the source is a table or a Hugging Face folder."""
    tar: TarConfig = TarConfig()
    """Members, where the source is tars."""
    tars: Literal["adopt", "reshard"] = "adopt"
    """Tars that others wrote are adopted where they lie (index and manifest are added), or written anew as shards."""
    labels: Literal["auto", "none"] = "auto"
    """`none`: whatever the corpus says of classes means nothing, so folders may be nested at will."""
    captions: Literal["auto", "none"] = "auto"
    """`none`: whatever the corpus says of captions means nothing."""
    scratch: str | None = None
    """Local folder for what cannot be read by place (Parquet files, compressed tars); on a cluster, one that all
    machines share. Default: a folder of the user's own below the system's temporary folder."""

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
