"""What a classifier scored: accuracies, AUROC and calibration, as points. Their intervals are in `statistics`.

Legend: N samples, K classes. Labels and predictions are int64 [N] in 0..K−1, logits float [N, K].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Logits = NDArray[np.float32]

MetricName = Literal["top1", "balanced_accuracy", "auroc"]
"""The metrics that can be compared between models and gated on; higher is better, all lie in 0..1."""

_ROWS = 4096  # rows of logits turned into probabilities at once: bounds memory at a thousand classes


def predicted(logits: Logits) -> IntArray:
    """The class of each sample's largest logit; the first one where several are equal."""
    return np.asarray(logits.argmax(axis=1), dtype=np.int64)


def top1(labels: IntArray, predictions: IntArray) -> float:
    """Fraction of samples classified rightly."""
    return float((labels == predictions).mean())


def class_hits(labels: IntArray, predictions: IntArray, classes: int) -> tuple[IntArray, IntArray]:
    """Samples of each class classified rightly [K], and samples of each class [K]."""
    hits = np.bincount(labels[labels == predictions], minlength=classes)
    return hits.astype(np.int64), np.bincount(labels, minlength=classes).astype(np.int64)


def balanced_accuracy(labels: IntArray, predictions: IntArray) -> float:
    """Mean over the classes that have samples of the fraction of their samples classified rightly."""
    hits, totals = class_hits(labels, predictions, int(max(labels.max(), predictions.max())) + 1)
    return float((hits[totals > 0] / totals[totals > 0]).mean())


def confusion_matrix(labels: IntArray, predictions: IntArray, classes: int) -> IntArray:
    """Counts [K, K]: row the true class, column the predicted one."""
    cells = np.bincount(labels * classes + predictions, minlength=classes * classes)
    return cells.reshape(classes, classes).astype(np.int64)


def placements(positive: BoolArray, scores: FloatArray) -> FloatArray:
    """For each sample, the fraction of the other kind that it is ranked rightly against; a tie counts half.

    The mean over the positives equals the mean over the negatives: the AUROC.
    """
    result = np.empty(len(scores))
    above, below = scores[positive], scores[~positive]
    result[positive] = _fraction_below(below, above)
    result[~positive] = 1 - _fraction_below(above, below)
    return result


def _fraction_below(reference: FloatArray, values: FloatArray) -> FloatArray:
    ordered = np.sort(reference)
    less, at_most = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return (less + at_most) / (2 * len(ordered))


def ranking_problems(labels: IntArray, logits: Logits) -> Iterator[tuple[BoolArray, FloatArray]]:
    """The (positives [N], scores [N]) whose AUROCs are averaged.

    Two classes are one problem, scored by the difference of the logits (which class is called positive changes
    nothing). More are one against the rest, scored by the log-probability of the class; a class without samples, or
    with all of them, has no ranking and is left out.
    """
    if logits.shape[1] == 2:
        both = labels == 1
        if 0 < both.sum() < len(labels):
            yield both, logits[:, 1].astype(np.float64) - logits[:, 0]
        return
    normalizer = _log_normalizer(logits)
    for label, count in enumerate(np.bincount(labels, minlength=logits.shape[1])):
        if 0 < count < len(labels):
            yield labels == label, logits[:, label] - normalizer


def auroc(labels: IntArray, logits: Logits) -> float:
    """Area under the ROC curve, exact with ties; macro average of one-vs-rest for more than two classes.

    NaN when all samples have one class: there is nothing to rank.
    """
    areas = [placements(positive, scores)[positive].mean() for positive, scores in ranking_problems(labels, logits)]
    return float(np.mean(areas)) if areas else float("nan")


def roc_points(positive: BoolArray, scores: FloatArray) -> tuple[FloatArray, FloatArray]:
    """False and true positive rates at every distinct threshold, from (0, 0) to (1, 1)."""
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(positive[order])[last_of_tie]
    alarms = np.cumsum(~positive[order])[last_of_tie]
    return np.append(0.0, alarms / alarms[-1]), np.append(0.0, hits / hits[-1])


class Calibration(NamedTuple):
    """Samples grouped by confidence into bins of equal width; arrays [bins]."""

    counts: IntArray
    confidence: FloatArray
    """Mean confidence; NaN in an empty bin"""
    accuracy: FloatArray
    """Fraction classified rightly; NaN in an empty bin"""


def confidence(logits: Logits) -> FloatArray:
    """Probability [N] of the predicted class."""
    probability: FloatArray = np.exp(logits.max(axis=1) - _log_normalizer(logits))
    return np.minimum(probability, 1.0)


def confidence_bins(confidences: FloatArray, bins: int) -> IntArray:
    """Bin [N] of each confidence: bin b holds [b / bins, (b + 1) / bins), the last one 1 as well."""
    return np.minimum((confidences * bins).astype(np.int64), bins - 1)


def calibration(labels: IntArray, logits: Logits, bins: int = 15) -> Calibration:
    """Confidence against accuracy (1706.04599, section 2)."""
    confidences = confidence(logits)
    right = (predicted(logits) == labels).astype(np.float64)
    index = confidence_bins(confidences, bins)
    counts = np.bincount(index, minlength=bins).astype(np.int64)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(index, confidences, bins) / counts
        accuracy = np.bincount(index, right, bins) / counts
    return Calibration(counts, mean_confidence, accuracy)


def ece(labels: IntArray, logits: Logits, bins: int = 15) -> float:
    """Expected calibration error: mean over samples of |accuracy − confidence| of their bin (1706.04599, eq. 3)."""
    groups = calibration(labels, logits, bins)
    gaps = np.abs(groups.accuracy - groups.confidence)
    return float(np.nansum(gaps * groups.counts) / len(labels))


def metric_value(metric: MetricName, labels: IntArray, logits: Logits) -> float:
    """One of the gated metrics by name."""
    if metric == "auroc":
        return auroc(labels, logits)
    return (top1 if metric == "top1" else balanced_accuracy)(labels, predicted(logits))


def chance(metric: MetricName, labels: IntArray) -> float:
    """The best score of a model that never looks at the photograph.

    Top-1: the share of the most frequent class. Balanced accuracy: 1 ÷ the classes that have samples. AUROC: ½.
    """
    totals = np.bincount(labels)
    if metric == "top1":
        return float(totals.max() / totals.sum())
    return float(1 / np.count_nonzero(totals)) if metric == "balanced_accuracy" else 0.5


def _log_normalizer(logits: Logits) -> FloatArray:
    """log Σ_k exp(logit_k) of each row, in float64, a few thousand rows at a time."""
    result = np.empty(len(logits))
    for start in range(0, len(logits), _ROWS):
        rows = logits[start : start + _ROWS].astype(np.float64)
        top = rows.max(axis=1)
        result[start : start + _ROWS] = top + np.log(np.exp(rows - top[:, None]).sum(axis=1))
    return result
