"""An evaluation as a small value: metrics with intervals, per-class accuracy, confusion matrix, speed. JSON throughout.

The logits stay in `Outcomes`, saved beside the report; a comparison or a gate needs those.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from vitcore.evals.metrics import confusion_matrix
from vitcore.evals.outcomes import Outcomes
from vitcore.evals.protocol import Name
from vitcore.evals.statistics import (
    LEVEL,
    RESAMPLES,
    Estimate,
    auroc_estimate,
    balanced_accuracy_estimate,
    class_accuracies,
    ece_estimate,
    top1_estimate,
)
from vitcore.recipe import Config


class ClassRow(Config):
    """How one class fared."""

    name: str
    accuracy: Estimate
    """Fraction of its samples classified rightly (recall), with Wilson's interval; `accuracy.n` samples."""
    predicted: int
    """Samples that were taken for this class, rightly or not."""


class TrainingOverlap(Config):
    """How many of the photographs of a split the model, or one it was made from, was trained on."""

    training: tuple[str, ...]
    """Digests of the dataset versions compared with."""
    missing: tuple[str, ...] = ()
    """Training data that could not be compared with, and why, a sentence each."""
    samples: int
    """Photographs of the split."""
    exact: int
    """Of them, those whose content is among the training photographs."""
    near: int
    """Of the others, those with a near copy there."""
    clean: dict[str, Estimate]
    """Metrics of the photographs that have no copy there; empty when all or none have one."""

    @property
    def fractions(self) -> dict[str, float]:
        """`overlap_exact` and `overlap_near`; empty when nothing could be compared."""
        if not self.training:
            return {}
        return {"overlap_exact": self.exact / self.samples, "overlap_near": self.near / self.samples}


class Report(Config):
    """One model on one split of one dataset version."""

    schema_version: Literal[1] = 1
    """Version of this layout."""
    model: str
    """Reference of the model, resolved to a version."""
    dataset: str
    """Digest of the dataset version."""
    split: str
    protocol: Name = "classifier"
    """How the model was asked."""
    samples: int
    """Samples evaluated."""
    skipped: tuple[str, ...] = ()
    """Keys of samples that could not be read."""
    level: float = LEVEL
    """Confidence level of every interval."""
    metrics: dict[str, Estimate]
    """`top1`, `balanced_accuracy`, `ece`, and `auroc` where the samples have at least two classes."""
    per_class: tuple[ClassRow, ...]
    """The classes that have samples, in the dataset's order."""
    classes: tuple[str, ...]
    """Names of the confusion matrix's rows and columns."""
    confusion: tuple[tuple[int, ...], ...]
    """Counts: row the true class, column the predicted one."""
    parameters: int | None = None
    """Weights of the model."""
    images_per_s: float | None = None
    """Throughput of the forward pass on the machine that evaluated."""
    overlap: TrainingOverlap | None = None
    """What of the split is known from training; None where nothing is known of the model's training."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the reader of the scores must know of the split and the training photographs, a sentence each."""
        return () if self.overlap is None else (*_overlap_remarks(self.overlap), *self.overlap.missing)


def build_report(
    outcomes: Outcomes,
    *,
    model: str,
    dataset: str,
    split: str,
    protocol: Name = "classifier",
    parameters: int | None = None,
    images_per_s: float | None = None,
    overlap: TrainingOverlap | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Report:
    """Compute every metric of the outcomes; the same outcomes and seed give the same report."""
    labels, predictions = outcomes.labels, outcomes.predictions
    metrics = score(outcomes, level=level, resamples=resamples, seed=seed)
    confusion = confusion_matrix(labels, predictions, len(outcomes.classes))
    accuracies = class_accuracies(labels, predictions, len(outcomes.classes), level=level)
    rows = zip(outcomes.classes, accuracies, confusion.sum(axis=0), strict=True)
    return Report(
        model=model,
        dataset=dataset,
        split=split,
        protocol=protocol,
        samples=len(outcomes),
        skipped=outcomes.skipped,
        level=level,
        metrics=metrics,
        per_class=tuple(
            ClassRow(name=name, accuracy=accuracy, predicted=int(taken)) for name, accuracy, taken in rows if accuracy.n
        ),
        classes=outcomes.classes,
        confusion=tuple(map(tuple, confusion.tolist())),
        parameters=parameters,
        images_per_s=images_per_s,
        overlap=overlap,
    )


def score(
    outcomes: Outcomes, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """The metrics of a report."""
    labels, logits, predictions = outcomes.labels, outcomes.logits, outcomes.predictions
    metrics = {
        "top1": top1_estimate(labels, predictions, level=level),
        "balanced_accuracy": balanced_accuracy_estimate(
            labels, predictions, level=level, resamples=resamples, seed=seed
        ),
    }
    if len(np.unique(labels)) > 1:
        metrics["auroc"] = auroc_estimate(labels, logits, level=level, resamples=resamples, seed=seed)
    metrics["ece"] = ece_estimate(labels, logits, level=level, resamples=resamples, seed=seed)
    return metrics


def _overlap_remarks(overlap: TrainingOverlap) -> Iterator[str]:
    known = overlap.exact + overlap.near
    if not overlap.training:
        return
    if not known:
        yield f"None of the {overlap.samples:,} photographs has a copy among the training photographs."
        return
    clean = overlap.clean.get("balanced_accuracy")
    without = f"; without them balanced accuracy is {clean}" if clean else ""
    yield (
        f"{known:,} of the {overlap.samples:,} photographs have a copy among the training photographs "
        f"({overlap.exact:,} exact, {overlap.near:,} near){without}."
    )
