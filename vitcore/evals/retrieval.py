"""Photographs and captions find each other: recall among the nearest, both ways, with 95 % intervals (2103.00020,
appendix E.1). JSON throughout, as `Report`.

Legend: N photographs, M captions, E dimension of the shared space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vitcore.evals.metrics import BoolArray, IntArray
from vitcore.evals.statistics import LEVEL, Estimate, wilson
from vitcore.measures.retrieval import ranks
from vitcore.recipe import Config

AT = (1, 5, 10)
"""How many of the nearest are looked at."""


class Direction(Config):
    """One side asks, the other is searched."""

    queries: int
    gallery: int
    """How many are searched."""
    recall: dict[str, Estimate]
    """``recall_at_1``, ``_5`` and ``_10``: share of the queries that find a right answer among so many nearest. An
    interval knows that the captions of one photograph are not independent."""
    chance: dict[str, float]
    """The same of guessing."""
    median_rank: float
    """Half of the queries find a right answer at this place or before; 1 is the nearest."""


class RetrievalReport(Config):
    """One model on the captioned photographs of one split of one dataset version."""

    schema_version: Literal[1] = 1
    """Version of this layout."""
    protocol: Literal["retrieval"] = "retrieval"
    """How the model was asked."""
    model: str
    """Reference of the model, resolved to a version."""
    dataset: str
    """Digest of the dataset version."""
    split: str
    samples: int
    """Photographs of the gallery."""
    captions: int
    """Captions of the gallery."""
    uncaptioned: int = 0
    """Photographs that were left out because they have no caption."""
    skipped: tuple[str, ...] = ()
    """Keys of photographs that could not be read."""
    level: float = LEVEL
    """Confidence level of every interval."""
    image_to_text: Direction
    """A photograph asks for one of its captions."""
    text_to_image: Direction
    """A caption asks for its photograph."""
    parameters: int | None = None
    """Weights of the model."""
    images_per_s: float | None = None
    """Throughput of the image tower on the machine that evaluated."""

    @property
    def metrics(self) -> dict[str, Estimate]:
        """Every recall by name: ``image_to_text_recall_at_1`` …"""
        sides = {"image_to_text": self.image_to_text, "text_to_image": self.text_to_image}
        return {f"{side}_{name}": found for side, which in sides.items() for name, found in which.recall.items()}

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the reader of the scores must know of the gallery, a sentence each."""
        said = [f"Recall depends on the size of the gallery: {self.samples:,} photographs, {self.captions:,} captions."]
        if self.uncaptioned:
            said.append(f"{self.uncaptioned:,} photographs without a caption were left out.")
        return tuple(said)


def build_retrieval_report(
    images: NDArray[np.float32],
    texts: NDArray[np.float32],
    owners: IntArray,
    *,
    model: str,
    dataset: str,
    split: str,
    uncaptioned: int = 0,
    skipped: Sequence[str] = (),
    parameters: int | None = None,
    images_per_s: float | None = None,
    level: float = LEVEL,
) -> RetrievalReport:
    """Recall of both directions, by the cosine of embeddings.

    Args:
        images: embeddings (N, E) of length 1; every photograph owns a caption.
        texts: embeddings (M, E) of length 1.
        owners: the photograph (row of `images`) that each caption belongs to [M].
        model: reference.
        dataset: digest.
        split: its split.
        uncaptioned: photographs left out.
        skipped: keys of photographs that could not be read.
        parameters: weights of the model.
        images_per_s: throughput of the image tower.
        level: confidence level of the intervals.
    """
    found = ranks(torch.from_numpy(images), torch.from_numpy(texts), torch.from_numpy(owners))
    own = np.bincount(owners, minlength=len(images))
    return RetrievalReport(
        model=model,
        dataset=dataset,
        split=split,
        samples=len(images),
        captions=len(texts),
        uncaptioned=uncaptioned,
        skipped=tuple(skipped),
        level=level,
        image_to_text=_direction(found.texts_N.numpy(), np.arange(len(images)), own, len(texts), level),
        text_to_image=_direction(found.images_T.numpy(), owners, np.ones(len(texts), np.int64), len(images), level),
        parameters=parameters,
        images_per_s=images_per_s,
    )


def clustered_wilson(hits: BoolArray, groups: IntArray, level: float = LEVEL) -> Estimate:
    """A proportion whose samples come in groups that resemble each other, such as the captions of a photograph.

    Wilson's interval with as many samples as independent ones would have to be for the same variance (Kish's design
    effect; the variance is that of a ratio over groups). Where nothing varies, groups count once.

    Args:
        hits: [N].
        groups: [N], of each sample.
        level: confidence level.
    """
    count, rate = len(hits), float(hits.mean())
    sizes = np.bincount(groups)
    present = sizes > 0
    sums = np.bincount(groups, hits.astype(np.float64))[present]
    sizes = sizes[present]
    groups_in_all = len(sizes)
    if groups_in_all == count:
        return wilson(int(hits.sum()), count, level)
    off = sums - rate * sizes
    variance = groups_in_all / max(groups_in_all - 1, 1) * float((off**2).sum()) / count**2
    independent = rate * (1 - rate) / variance if variance > 0 else groups_in_all
    independent = min(max(independent, 1.0), count)
    return replace(wilson(rate * independent, independent, level), value=rate, n=count)


def chance(owned: IntArray, gallery: int, k: int) -> float:
    """Share of the queries that find a right answer among `k` drawn at random from the gallery.

    Args:
        owned: right answers of each query.
        gallery: how many are searched.
        k: how many are drawn.
    """
    k = min(k, gallery)
    return float(np.mean([1 - math.comb(gallery - int(own), k) / math.comb(gallery, k) for own in owned]))


def _direction(found: IntArray, groups: IntArray, owned: IntArray, gallery: int, level: float) -> Direction:
    return Direction(
        queries=len(found),
        gallery=gallery,
        recall={f"recall_at_{k}": clustered_wilson(found < k, groups, level) for k in AT},
        chance={f"recall_at_{k}": chance(owned, gallery, k) for k in AT},
        median_rank=float(np.median(found)) + 1,
    )
