"""The report is complete, is JSON, and can be drawn."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from vitcore.errors import RequestError
from vitcore.evals import figures, style
from vitcore.evals.outcomes import Outcomes
from vitcore.evals.report import Report, build_report
from vitcore.evals.statistics import Estimate

PNG = b"\x89PNG\r\n\x1a\n"


def report_of(outcomes: Outcomes) -> Report:
    return build_report(outcomes, model="models:/cells/3", dataset="0123456789abcdef", split="test", resamples=100)


def test_a_report_goes_through_json_unchanged(make_outcomes) -> None:
    report = report_of(make_outcomes(120, ("functional", "defective", "unseen"), 1.0))
    assert Report.model_validate_json(report.model_dump_json()) == report
    assert set(report.metrics) == {"top1", "balanced_accuracy", "auroc", "ece"}
    for found in report.metrics.values():
        assert found.low <= found.value <= found.high
        assert found.n == 120
    assert np.sum(report.confusion) == report.samples == 120
    assert report.metrics["top1"].value == pytest.approx(np.trace(report.confusion) / 120)
    assert sum(row.accuracy.n for row in report.per_class) == 120


def test_a_split_of_one_class_has_no_auroc_and_empty_classes_no_row() -> None:
    outcomes = Outcomes(np.array(["a", "b"]), np.zeros(2, np.int64), np.eye(2, dtype=np.float32), ("x", "y"))
    report = report_of(outcomes)
    assert "auroc" not in report.metrics
    assert [row.name for row in report.per_class] == ["x"]
    assert Report.model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize("classes", [2, 10, 60])
def test_every_picture_of_a_report_is_drawn(classes: int, make_outcomes) -> None:
    outcomes = make_outcomes(400, classes, 1.5)
    drawn = figures.report_figures(report_of(outcomes), outcomes)
    assert ("roc_curve" in drawn) == (classes == 2)
    for made in drawn.values():
        assert style.to_png(made).startswith(PNG)


def test_equal_figures_are_equal_bytes_in_any_thread(make_outcomes) -> None:
    outcomes = make_outcomes(200, 2, 1.0)
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(style.to_png(figures.reliability(outcomes)))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]


def test_comparison_and_training_curves_are_drawn_from_partial_rows() -> None:
    scores = [
        figures.ModelScore("teacher", Estimate(0.86, 0.83, 0.89, 524), 3_400_000, 412.0),
        figures.ModelScore("DeiT", Estimate(0.75, 0.71, 0.79, 524)),
    ]
    assert style.to_png(figures.comparison(scores, metric="balanced accuracy", chance=0.5)).startswith(PNG)
    rows = [
        {"step": step, "train/loss": 1 / step} | ({"val/top1": step / 20} if step % 5 == 0 else {})
        for step in range(1, 16)
    ]
    made = figures.training_curves({"ViT": rows, "just begun": []}, validation="val/top1")
    assert style.to_png(made).startswith(PNG)
    best = made.axes[1].lines[1]
    assert list(best.get_xdata()) == [15]
    alone = figures.training_curves({"MAE": rows}, validation=None)
    assert style.to_png(alone).startswith(PNG)
    assert len(alone.axes) == 1
    with pytest.raises(RequestError, match="no model to compare"):
        figures.comparison([], metric="top-1")


def test_a_roc_curve_needs_two_classes(make_outcomes) -> None:
    with pytest.raises(RequestError, match="two classes"):
        figures.roc_curve(make_outcomes(30, 3, 1.0))
