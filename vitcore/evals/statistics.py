"""How sure a score is: confidence intervals of metrics, and of the difference of two models on the same samples.

Accuracies get Wilson's interval. Balanced accuracy and AUROC get the percentile interval of a seeded, stratified
bootstrap: BCa was not worth a jackknife over every sample, since both metrics are means with little bias and the
percentile's weakness (no spread where nothing went wrong) is one that BCa shares; it is mended where it arises.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from vitcore.errors import WorkError
from vitcore.evals import bootstrap
from vitcore.evals.metrics import (
    FloatArray,
    IntArray,
    Logits,
    MetricName,
    balanced_accuracy,
    class_hits,
    ece,
    metric_value,
    predicted,
)

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and how sure it is."""

    value: float
    low: float
    high: float
    n: int
    """Samples it rests on."""

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class Difference(Estimate):
    """What one model scores above another on the same samples."""

    probability: float
    """Share of resamples in which the first model is the better one, ties counting half: near 1 it is, near 0 the
    other, near ½ nothing is known. Twice the smaller of it and its complement reads like a two-sided p-value."""


def wilson(hits: float, total: float, level: float = LEVEL) -> Estimate:
    """A proportion with Wilson's score interval (Wilson 1927); of no samples, NaN between 0 and 1.

    Samples that are not independent count as fewer: hits and total need not be whole.
    """
    if total == 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    z = NormalDist().inv_cdf((1 + level) / 2)
    rate = hits / total
    scale = 1 + z * z / total
    centre = (rate + z * z / (2 * total)) / scale
    half = z * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total)) / scale
    return Estimate(rate, min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half)), round(total))


def top1_estimate(labels: IntArray, predictions: IntArray, *, level: float = LEVEL) -> Estimate:
    """Top-1 accuracy with Wilson's interval."""
    return wilson(int((labels == predictions).sum()), len(labels), level)


def class_accuracies(
    labels: IntArray, predictions: IntArray, classes: int, *, level: float = LEVEL
) -> tuple[Estimate, ...]:
    """Accuracy within each of the K classes, with Wilson's intervals."""
    hits, totals = class_hits(labels, predictions, classes)
    return tuple(wilson(int(hit), int(total), level) for hit, total in zip(hits, totals, strict=True))


def balanced_accuracy_estimate(
    labels: IntArray, predictions: IntArray, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Balanced accuracy with a stratified bootstrap interval, computed from the classes' counts."""
    hits, totals = class_hits(labels, predictions, int(max(labels.max(), predictions.max())) + 1)
    drawn = bootstrap.balanced_accuracies(hits, totals, resamples, np.random.default_rng(seed))
    return _percentile(balanced_accuracy(labels, predictions), drawn, level, len(labels))


def auroc_estimate(
    labels: IntArray, logits: Logits, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """AUROC (macro one-vs-rest for more than two classes) with a stratified bootstrap interval.

    Raises:
        WorkError: all samples have one class.
    """
    value = _defined("auroc", labels, logits)
    statistic = bootstrap.auroc_replicate(labels, logits, resamples)
    drawn = bootstrap.replicates(statistic, labels, resamples, np.random.default_rng(seed))
    found = _percentile(value, drawn, level, len(labels))
    if value < 1:
        return found
    # A perfect ranking is perfect in every resample. What n samples without an error still leave open is Wilson's
    # bound for n of n, with n the rarer side of each class's problem; the classes' slacks add in quadrature.
    totals = np.bincount(labels)
    rarer = np.minimum(totals, len(labels) - totals)[totals > 0]
    rarer = rarer[:1] if logits.shape[1] == 2 else rarer
    slack = math.sqrt(sum((1 - wilson(int(n), int(n), level).low) ** 2 for n in rarer)) / len(rarer)
    return Estimate(1.0, 1 - slack, 1.0, found.n)


def ece_estimate(
    labels: IntArray,
    logits: Logits,
    *,
    bins: int = 15,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Expected calibration error with a stratified bootstrap interval.

    The estimator is biased upwards (noise in a bin counts as miscalibration) and a resample is biased once more, so
    the percentiles are reflected about the value (the basic interval), which takes that bias off; it is widened to
    hold the value where the bias exceeds the spread.
    """
    value = ece(labels, logits, bins)
    statistic = bootstrap.ece_replicate(labels, logits, bins)
    drawn = 2 * value - bootstrap.replicates(statistic, labels, resamples, np.random.default_rng(seed))
    return _percentile(value, np.clip(drawn, 0.0, 1.0), level, len(labels))


def estimate(
    metric: MetricName,
    labels: IntArray,
    logits: Logits,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """One of the gated metrics with its interval."""
    if metric == "top1":
        return top1_estimate(labels, predicted(logits), level=level)
    if metric == "balanced_accuracy":
        return balanced_accuracy_estimate(labels, predicted(logits), level=level, resamples=resamples, seed=seed)
    return auroc_estimate(labels, logits, level=level, resamples=resamples, seed=seed)


def paired_difference(
    metric: MetricName,
    labels: IntArray,
    logits_a: Logits,
    logits_b: Logits,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Metric of model A minus metric of model B on the same samples, with a paired bootstrap interval.

    Each resample scores both models on the same draw, so what makes a photograph hard for both cancels. Draws are
    stratified by class, save for top-1. Two models that decide every sample alike differ by exactly 0, with no width.

    Raises:
        WorkError: AUROC where all samples have one class.
    """
    value = _defined(metric, labels, logits_a) - _defined(metric, labels, logits_b)
    rng = np.random.default_rng(seed)
    right_a, right_b = predicted(logits_a) == labels, predicted(logits_b) == labels
    if metric == "auroc":
        score_a = bootstrap.auroc_replicate(labels, logits_a, resamples)
        score_b = bootstrap.auroc_replicate(labels, logits_b, resamples)
        drawn = bootstrap.replicates(lambda chunk: score_a(chunk) - score_b(chunk), labels, resamples, rng)
    else:
        strata = labels if metric == "balanced_accuracy" else np.zeros_like(labels)
        drawn = bootstrap.balanced_differences(strata, right_a, right_b, resamples, rng)
    found = _percentile(value, drawn, level, len(labels))
    better = float((drawn > 0).mean() + (drawn == 0).mean() / 2)
    return Difference(found.value, found.low, found.high, found.n, better)


def _defined(metric: MetricName, labels: IntArray, logits: Logits) -> float:
    value = metric_value(metric, labels, logits)
    if math.isnan(value):
        raise WorkError("AUROC needs samples of at least two classes, and all samples here have one class")
    return value


def _percentile(value: float, drawn: FloatArray, level: float, samples: int) -> Estimate:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, min(value, float(low)), max(value, float(high)), samples)
