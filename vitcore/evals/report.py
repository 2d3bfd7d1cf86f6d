"""An evaluation as a small value: metrics with intervals, per-class accuracy, confusion matrix, speed. JSON throughout.

The logits stay in `Outcomes`, saved beside the report; a comparison or a gate needs those.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from vitcore.evals.metrics import confusion_matrix
from vitcore.evals.outcomes import Outcomes
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


class Report(Config):
    """One model on one split of one dataset version."""

    schema_version: Literal[1] = 1
    """Version of this layout."""
    model: str
    """Reference of the model, resolved to a version."""
    dataset: str
    """Digest of the dataset version."""
    split: str
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


def build_report(
    outcomes: Outcomes,
    *,
    model: str,
    dataset: str,
    split: str,
    parameters: int | None = None,
    images_per_s: float | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Report:
    """Compute every metric of the outcomes; the same outcomes and seed give the same report."""
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
    confusion = confusion_matrix(labels, predictions, len(outcomes.classes))
    accuracies = class_accuracies(labels, predictions, len(outcomes.classes), level=level)
    rows = zip(outcomes.classes, accuracies, confusion.sum(axis=0), strict=True)
    return Report(
        model=model,
        dataset=dataset,
        split=split,
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
    )
