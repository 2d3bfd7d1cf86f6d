"""Point metrics against brute force and hand-made examples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from vitcore.evals import metrics


def brute_auroc(positive: np.ndarray, scores: np.ndarray) -> float:
    pairs = list(itertools.product(scores[positive], scores[~positive]))
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_of_two_classes_equals_all_pairs_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.append([0, 1], rng.integers(0, 2, 60))
    logits = rng.integers(0, 4, (62, 2)).astype(np.float32)  # few distinct values: many ties
    expected = brute_auroc(labels == 1, logits[:, 1] - logits[:, 0])
    assert metrics.auroc(labels, logits) == pytest.approx(expected, abs=1e-12)
    swapped = metrics.auroc(1 - labels, logits[:, ::-1].copy())
    assert swapped == pytest.approx(expected, abs=1e-12), "which class is called positive changes nothing"


def test_auroc_of_several_classes_is_the_mean_of_one_against_the_rest() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 200)
    labels[labels == 2] = 3  # a class without samples is left out
    logits = rng.normal(size=(200, 4)).astype(np.float32)
    wide = logits.astype(np.float64)
    probabilities = np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True)
    expected = np.mean([brute_auroc(labels == label, probabilities[:, label]) for label in (0, 1, 3)])
    assert metrics.auroc(labels, logits) == pytest.approx(expected, abs=1e-12)


def test_auroc_extremes() -> None:
    labels = np.array([0, 0, 1, 1])
    perfect = np.array([[4, 0], [3, 0], [0, 1], [0, 2]], dtype=np.float32)
    assert metrics.auroc(labels, perfect) == 1
    assert metrics.auroc(labels, -perfect) == 0
    assert metrics.auroc(labels, np.zeros((4, 2), dtype=np.float32)) == 0.5
    assert math.isnan(metrics.auroc(np.zeros(4, dtype=np.int64), perfect))


def test_auroc_is_the_area_under_the_drawn_curve() -> None:
    rng = np.random.default_rng(1)
    positive = rng.random(300) < 0.3
    scores = np.round(rng.normal(size=300) + positive, 1)
    alarms, hits = metrics.roc_points(positive, scores)
    assert (alarms[0], hits[0], alarms[-1], hits[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(hits, alarms) == pytest.approx(brute_auroc(positive, scores), abs=1e-12)


def test_accuracies_of_a_hand_made_example() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 3])  # class 2 has no samples
    predictions = np.array([0, 0, 0, 1, 1, 2, 0])
    assert metrics.top1(labels, predictions) == pytest.approx(4 / 7)
    assert metrics.balanced_accuracy(labels, predictions) == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    assert metrics.confusion_matrix(labels, predictions, 4).tolist() == [
        [3, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 0, 0],
        [1, 0, 0, 0],
    ]


def test_chance_is_what_a_blind_model_scores() -> None:
    labels = np.array([0, 0, 0, 1, 3])
    assert metrics.chance("top1", labels) == pytest.approx(3 / 5)
    assert metrics.chance("balanced_accuracy", labels) == pytest.approx(1 / 3)
    assert metrics.chance("auroc", labels) == 0.5


def test_calibration_error_by_hand() -> None:
    labels = np.array([0, 0, 0, 1])
    logits = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])).astype(np.float32)
    # bin of 0.9: all right, gap 0.1; bin of 0.6: half right, gap 0.1
    assert metrics.ece(labels, logits, bins=15) == pytest.approx(0.1, abs=1e-6)
    groups = metrics.calibration(labels, logits, bins=2)
    assert groups.counts.tolist() == [0, 4]
    assert groups.accuracy[1] == pytest.approx(3 / 4)


def test_extreme_logits_stay_finite() -> None:
    logits = np.array([[3e4, -3e4], [-3e4, 3e4]], dtype=np.float32)
    assert metrics.confidence(logits).tolist() == [1, 1]
    assert metrics.ece(np.array([0, 1]), logits) == 0
