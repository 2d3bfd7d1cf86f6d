"""The pictures of an evaluation and of a training, as matplotlib `Figure`s in the house style.

Legend: K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vitcore.errors import RequestError
from vitcore.evals import bootstrap, style
from vitcore.evals.metrics import FloatArray, calibration, ranking_problems, roc_points
from vitcore.evals.outcomes import Outcomes
from vitcore.evals.report import Report
from vitcore.evals.statistics import Estimate, auroc_estimate, ece_estimate, wilson

_NAMED_CLASSES = 40  # beyond this many, names on an axis are no longer legible
_RANKED_CLASSES = 30  # lines of a per-class figure that fit a page
_STEPS = (1, 2, 5, 10)  # between ticks, so that whole percents stay whole
_COUNTED_CLASSES = 12  # up to this many, every cell of a confusion matrix has room for its count

Rows = Iterable[Mapping[str, float]]
"""Logged metrics of a run: ``{"step": 10, "train/loss": 0.7, …}``, each row with any subset of the metrics."""


@dataclass(frozen=True, slots=True)
class ModelScore:
    """One line of a comparison."""

    name: str
    score: Estimate
    parameters: int | None = None
    images_per_s: float | None = None


def report_figures(report: Report, outcomes: Outcomes) -> dict[str, Figure]:
    """Every picture of one evaluation by name; the ROC curve only where there are two classes."""
    found = {
        "confusion_matrix": confusion_matrix(report),
        "per_class_accuracy": per_class_accuracy(report),
        "reliability": reliability(outcomes),
    }
    if len(outcomes.classes) == 2 and "auroc" in report.metrics:
        found["roc_curve"] = roc_curve(outcomes)
    return found


def confusion_matrix(report: Report) -> Figure:
    """True class by predicted class; colour is the share of the true class, so rare classes are seen too."""
    counts = np.array(report.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    classes = len(counts)
    side = min(8.0, max(3.4, 1.6 + 0.62 * classes)) if classes <= _COUNTED_CLASSES else 7.2
    made, (ax,) = style.figure(side + 0.7, side)
    image = ax.imshow(shares, cmap=style.SHADES, vmin=0, vmax=1, interpolation="nearest")
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=0)
    if classes <= _NAMED_CLASSES:
        crowded = classes > 3
        ax.set_xticks(
            range(classes), report.classes, rotation=45 if crowded else 0, ha="right" if crowded else "center"
        )
        ax.set_yticks(range(classes), report.classes)
        ax.tick_params(labelsize=style.TEXT if classes <= 20 else 6)
        ax.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
        ax.grid(which="minor", color="white", linewidth=1.5 if classes <= 20 else 0.5)
        ax.tick_params(which="minor", length=0)
    if classes <= _COUNTED_CLASSES:
        _count_cells(ax, counts, shares)
    style.labels(ax, "predicted class", "true class")
    style.title(ax, "Confusion matrix", f"top-1 {report.metrics['top1'].value:.1%} of {report.samples:,} photographs")
    bar = made.colorbar(image, ax=ax, shrink=0.72, aspect=26, pad=0.03, format=PercentFormatter(1, decimals=0))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=style.SMALL, length=0, labelcolor=style.MUTED)
    bar.set_label("share of the true class", fontsize=style.SMALL, color=style.MUTED, fontfamily=style.FONT)
    return made


def _count_cells(ax: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    roomy = len(counts) <= 4
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        colour = "white" if share > 0.55 else style.INK if count else style.RULE
        note: dict[str, Any] = {"ha": "center", "color": colour, "fontfamily": style.FONT}
        big = 12.0 if roomy else style.TEXT
        ax.text(column, row - 0.08 * roomy, f"{count:,}", fontsize=big, va="center", **note)
        if roomy:
            ax.text(column, row + 0.16, f"{share:.1%}", fontsize=style.TEXT, va="center", alpha=0.85, **note)


def per_class_accuracy(report: Report, most: int = _RANKED_CLASSES) -> Figure:
    """Accuracy within each class and its 95 % interval, best first; of many classes the `most` lowest."""
    ranked = sorted(report.per_class, key=lambda row: (-row.accuracy.value, row.name))
    shown = ranked[-most:]
    made, (ax,) = style.figure(6.4, 1.4 + (0.32 if len(shown) <= 12 else 0.23) * max(len(shown), 2))
    balanced = report.metrics["balanced_accuracy"]
    ax.axvspan(balanced.low, balanced.high, color=style.SKY, alpha=0.16, linewidth=0)
    ax.axvline(balanced.value, color=style.SKY, linewidth=1.2)
    _whiskers(ax, [row.accuracy for row in shown], [style.BLUE] * len(shown))
    ax.set_yticks(range(len(shown)), [row.name for row in shown])
    for place, row in enumerate(shown):
        _beside(ax, place, f"{row.accuracy.value:.1%}  (n = {row.accuracy.n:,})")
    _share_axis(ax, 0.0, 1.0)
    style.labels(ax, "accuracy within the class")
    which = "" if len(shown) == len(ranked) else f"the {len(shown)} lowest of {len(ranked)} classes; "
    style.title(ax, "Accuracy by class", f"{which}line and band: balanced accuracy {balanced.value:.1%}")
    return made


def comparison(scores: Sequence[ModelScore], *, metric: str, chance: float | None = None, note: str = "") -> Figure:
    """A forest plot of several models on the same samples: value and 95 % interval, size and speed beside them.

    The intervals are each model's own. Whether two models differ is a paired question (`paired_difference`), which
    overlapping intervals here do not answer.
    """
    if not scores:
        raise RequestError("there is no model to compare; give at least one score")
    made, (ax,) = style.figure(9.0, 1.6 + 0.34 * len(scores))
    if chance is not None:
        ax.axvline(chance, color=style.MUTED, linewidth=1, linestyle=(0, (3, 3)))
        ax.annotate(
            "chance",
            (chance, 1),
            (4, -2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=style.SMALL,
            color=style.MUTED,
            va="top",
            fontfamily=style.FONT,
        )
    colours = [style.CYCLE[place % len(style.CYCLE)] for place in range(len(scores))]
    _whiskers(ax, [row.score for row in scores], colours)
    ax.set_yticks(range(len(scores)), [row.name for row in scores])
    for place, row in enumerate(scores):
        size = "" if row.parameters is None else f"{row.parameters / 1e6:.1f} M"
        speed = "" if row.images_per_s is None else f"{row.images_per_s:,.0f} img/s"
        _beside(ax, place, f"{row.score.value:.1%}", style.INK)
        _beside(ax, place, f"{row.score.low:.1%} – {row.score.high:.1%}", indent=50)
        _beside(ax, place, size, indent=150)
        _beside(ax, place, speed, indent=200)
    lows = [row.score.low for row in scores] + ([] if chance is None else [chance])
    _share_axis(ax, min(lows), max(row.score.high for row in scores))
    style.labels(ax, metric)
    style.title(ax, "Models compared", note or f"95 % intervals, {scores[0].score.n:,} photographs")
    return made


def roc_curve(outcomes: Outcomes, *, resamples: int = 400, seed: int = 0) -> Figure:
    """The ROC curve of a two-class model with a pointwise 95 % bootstrap band; the second class is the positive one."""
    problems = list(ranking_problems(outcomes.labels, outcomes.logits))
    if len(outcomes.classes) != 2 or not problems:
        raise RequestError("a ROC curve needs a model of two classes and samples of both; draw `reliability` instead")
    positive, scores = problems[0]
    alarms, hits = roc_points(positive, scores)
    steps = np.linspace(0, 1, 201)
    curves = []
    for chunk in bootstrap.weights(outcomes.labels, resamples, np.random.default_rng(seed)):
        for drawn in chunk:
            again = np.repeat(np.arange(len(drawn)), drawn)
            curves.append(np.interp(steps, *roc_points(positive[again], scores[again])))
    low, high = np.quantile(curves, [0.025, 0.975], axis=0)
    area = auroc_estimate(outcomes.labels, outcomes.logits, seed=seed)
    made, (ax,) = style.figure(4.4, 4.5)
    _diagonal(ax)
    ax.fill_between(steps, low, high, color=style.BLUE, alpha=0.15, linewidth=0)
    ax.plot(alarms, hits, color=style.BLUE, linewidth=1.8, solid_joinstyle="round")
    _unit_square(ax)
    negative_name, positive_name = outcomes.classes
    style.labels(ax, f"{negative_name} taken for {positive_name}", f"{positive_name} found")
    style.title(ax, "ROC curve", f"AUROC {area.value:.3f} [{area.low:.3f}, {area.high:.3f}], n = {area.n:,}")
    return made


def reliability(outcomes: Outcomes, *, bins: int = 10, seed: int = 0) -> Figure:
    """Accuracy against confidence, with Wilson's intervals; dots grow with the samples they stand for."""
    groups = calibration(outcomes.labels, outcomes.logits, bins)
    error = ece_estimate(outcomes.labels, outcomes.logits, seed=seed)
    made, (ax,) = style.figure(4.4, 4.5)
    _diagonal(ax)
    filled = groups.counts > 0
    counts, sure, right = groups.counts[filled], groups.confidence[filled], groups.accuracy[filled]
    spans = [wilson(round(rate * count), int(count)) for rate, count in zip(right, counts, strict=True)]
    ax.vlines(
        sure, [span.low for span in spans], [span.high for span in spans], color=style.BLUE, linewidth=1.2, alpha=0.7
    )
    ax.plot(sure, right, color=style.BLUE, linewidth=1, alpha=0.35)
    sizes = 14 + 110 * counts / counts.max()
    ax.scatter(sure, right, s=sizes, color=style.BLUE, edgecolor="white", linewidth=0.9, zorder=3)
    _unit_square(ax)
    style.labels(ax, "confidence of the prediction", "fraction right")
    style.title(ax, "Reliability", f"ECE {error.value:.3f} [{error.low:.3f}, {error.high:.3f}], n = {error.n:,}")
    return made


def training_curves(
    runs: Mapping[str, Rows], *, loss: str = "train/loss", validation: str | None = "val/balanced_accuracy"
) -> Figure:
    """Training loss (faint, with a running mean) and a validation metric with its best step, one colour a run.

    Where nothing was validated (`validation` is None), the loss stands alone.
    """
    kept = {name: list(rows) for name, rows in runs.items()}
    panels = 1 if validation is None else 2
    made, axes = style.figure(0.2 + 4.1 * panels, 3.5, columns=panels)
    _draw_loss(axes[0], kept, loss)
    if validation is not None:
        _draw_validation(axes[1], kept, validation)
    for ax in axes:
        style.grid(ax, "y")
        style.labels(ax, "step")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=_STEPS))
        ax.margins(x=0.02)
    if len(runs) > 1:
        style.legend(axes[-1])
    return made


def _draw_loss(ax: Axes, runs: Mapping[str, Sequence[Mapping[str, float]]], loss: str) -> None:
    for colour, (name, rows) in zip(cycle(style.CYCLE), runs.items(), strict=False):
        steps, values = _series(rows, loss)
        ax.plot(steps, values, color=colour, linewidth=0.7, alpha=0.28)
        ax.plot(steps, _running_mean(values), color=colour, linewidth=1.7, label=name)
    style.title(ax, "Training loss", "running mean over 5 % of the steps")


def _draw_validation(ax: Axes, runs: Mapping[str, Sequence[Mapping[str, float]]], validation: str) -> None:
    for colour, (name, rows) in zip(cycle(style.CYCLE), runs.items(), strict=False):
        steps, values = _series(rows, validation)
        ax.plot(steps, values, color=colour, linewidth=1.7, marker="o", markersize=3.2, markeredgewidth=0, label=name)
        if len(values):
            best = int(values.argmin() if validation.endswith("loss") else values.argmax())
            ax.plot(steps[best], values[best], "o", markersize=7.5, color="white", markeredgecolor=colour)
            ax.plot(steps[best], values[best], "o", markersize=3.2, color=colour, markeredgewidth=0)
    if not validation.endswith("loss"):
        ax.yaxis.set_major_locator(MaxNLocator(7, steps=_STEPS))
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    named = validation.removeprefix("val/").replace("_", " ").capitalize()
    style.title(ax, f"{named} in validation", "circle: best checkpoint")


def _whiskers(ax: Axes, spans: Sequence[Estimate], colours: Sequence[str]) -> None:
    """One horizontal interval a line, first on top."""
    for place, (span, colour) in enumerate(zip(spans, colours, strict=True)):
        ax.plot([span.low, span.high], [place, place], color=colour, linewidth=2, solid_capstyle="round", alpha=0.55)
        ax.plot(span.value, place, "o", markersize=6.5, color=colour, markeredgecolor="white", markeredgewidth=0.9)
    ax.set_ylim(len(spans) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    style.grid(ax, "x")


def _beside(ax: Axes, place: float, text: str, colour: str = style.MUTED, indent: float = 8) -> None:
    """A note to the right of the axes, on the line at `place`."""
    ax.annotate(
        text,
        (1, place),
        (indent, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
        fontsize=style.TEXT,
        color=colour,
        fontfamily=style.FONT,
        annotation_clip=False,
    )


def _share_axis(ax: Axes, low: float, high: float) -> None:
    """Percent on x, from a little below `low` to a little above `high`, never beyond 0 and 100 % by much."""
    room = 0.06 * max(high - low, 0.05)
    ax.set_xlim(max(low - room, -0.02), min(high + room, 1.02))
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _unit_square(ax: Axes) -> None:
    ax.set_xlim(-0.015, 1.015)
    ax.set_ylim(-0.015, 1.015)
    ax.set_aspect("equal")
    style.grid(ax, "both")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(PercentFormatter(1, decimals=0))


def _diagonal(ax: Axes) -> None:
    ax.plot([0, 1], [0, 1], color=style.MUTED, linewidth=1, linestyle=(0, (3, 3)))


def _series(rows: Sequence[Mapping[str, float]], name: str) -> tuple[FloatArray, FloatArray]:
    points = sorted((row["step"], row[name]) for row in rows if name in row)
    steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def _running_mean(values: FloatArray) -> FloatArray:
    """Mean of each value and those around it: 5 % of the series, shrinking at its ends."""
    reach = max(1, len(values) // 40)
    total = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    start, stop = np.maximum(place - reach, 0), np.minimum(place + reach + 1, len(values))
    return np.asarray((total[stop] - total[start]) / (stop - start))
