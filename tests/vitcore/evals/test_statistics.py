"""Intervals: known values, agreement of exact and fast forms, and how often they hold the truth."""

from __future__ import annotations

import time

import numpy as np
import pytest

from vitcore.errors import WorkError
from vitcore.evals import bootstrap, metrics, statistics


def test_wilson_equals_its_published_values() -> None:
    # Newcombe 1998 (Statistics in Medicine 17), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    for hits, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        found = statistics.wilson(hits, total)
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    nearly = statistics.wilson(1, 29)
    assert (round(nearly.low, 4), round(nearly.high, 4)) == (0.0061, 0.1718)
    assert statistics.wilson(20, 20).high == 1
    assert statistics.wilson(0, 0).n == 0


def test_weights_redraw_every_class_within_itself() -> None:
    labels = np.array([0, 1, 1, 0, 2, 1, 1])
    drawn = np.concatenate(list(bootstrap.weights(labels, 4000, np.random.default_rng(0))))
    assert drawn.shape == (4000, 7)
    for label in range(3):
        assert (drawn[:, labels == label].sum(axis=1) == (labels == label).sum()).all()
    assert np.allclose(drawn.mean(axis=0), 1, atol=0.06)


def test_exact_auroc_replicates_equal_recomputing_on_the_resample() -> None:
    rng = np.random.default_rng(5)
    for classes in (2, 4):
        labels = rng.integers(0, classes, 80)
        logits = rng.integers(0, 6, (80, classes)).astype(np.float32)
        chunk = next(bootstrap.weights(labels, 6, rng))
        found = bootstrap._exact_auroc(labels, logits)(chunk)
        for row, value in zip(chunk, found, strict=True):
            again = np.repeat(np.arange(80), row)
            assert value == pytest.approx(metrics.auroc(labels[again], logits[again]), abs=1e-12)


def test_linear_auroc_agrees_with_the_exact_one() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 5, 600)
    logits = rng.normal(size=(600, 5)).astype(np.float32)
    logits[np.arange(600), labels] += 1
    spans = [
        np.quantile(
            bootstrap.replicates(form(labels, logits), labels, 1500, np.random.default_rng(1)), [0.025, 0.5, 0.975]
        )
        for form in (bootstrap._exact_auroc, bootstrap._linear_auroc)
    ]
    assert np.abs(spans[0] - spans[1]).max() < 0.003


def test_ece_replicates_equal_recomputing_on_the_resample() -> None:
    rng = np.random.default_rng(5)
    labels, logits = rng.integers(0, 3, 70), rng.normal(size=(70, 3)).astype(np.float32)
    chunk = next(bootstrap.weights(labels, 5, rng))
    for row, value in zip(chunk, bootstrap.ece_replicate(labels, logits, 15)(chunk), strict=True):
        again = np.repeat(np.arange(70), row)
        assert value == pytest.approx(metrics.ece(labels[again], logits[again]), abs=1e-12)


def test_balanced_differences_have_the_spread_of_redrawn_samples() -> None:
    rng = np.random.default_rng(8)
    labels = np.repeat([0, 1], [150, 60])
    right_a, right_b = rng.random(210) < 0.8, rng.random(210) < 0.7
    fast = bootstrap.balanced_differences(labels, right_a, right_b, 8000, rng)
    gap = right_a.astype(np.float64) - right_b
    drawn = np.concatenate(list(bootstrap.weights(labels, 8000, rng))) * gap
    slow = (drawn[:, :150].mean(axis=1) + drawn[:, 150:].mean(axis=1)) / 2
    assert fast.mean() == pytest.approx(slow.mean(), abs=2e-3)
    assert fast.std() == pytest.approx(slow.std(), rel=0.04)


@pytest.mark.parametrize(
    ("totals", "rates"), [((30, 20), (0.9, 0.8)), ((30, 20), (0.97, 0.95)), ((10,) * 10, (0.99,) * 10)]
)
def test_balanced_accuracy_interval_holds_the_truth(totals: tuple[int, ...], rates: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    truth, held, trials = np.mean(rates), 0, 400
    labels = np.repeat(np.arange(len(totals)), totals)
    for trial in range(trials):
        right = rng.random(len(labels)) < np.repeat(rates, totals)
        predictions = np.where(right, labels, (labels + 1) % len(totals))
        found = statistics.balanced_accuracy_estimate(labels, predictions, resamples=400, seed=trial)
        held += found.low <= truth <= found.high
    assert held / trials >= 0.92


def test_auroc_interval_holds_the_truth() -> None:
    rng = np.random.default_rng(1)
    truth, held, trials = 0.7602499, 0, 300  # Φ(1 / √2): unit Gaussians one apart
    labels = np.repeat([0, 1], [60, 40])
    for trial in range(trials):
        logits = np.stack([np.zeros(100), rng.normal(size=100) + labels], axis=1).astype(np.float32)
        found = statistics.auroc_estimate(labels, logits, resamples=300, seed=trial)
        held += found.low <= truth <= found.high
    assert 0.91 <= held / trials <= 0.985


@pytest.mark.parametrize("metric", ["top1", "balanced_accuracy", "auroc"])
def test_paired_interval_holds_no_difference(metric: metrics.MetricName) -> None:
    """Two models equally good that share most of what they see."""
    rng = np.random.default_rng(4)
    held, trials = 0, 250
    labels = np.repeat([0, 1], [120, 80])
    for trial in range(trials):
        shared = 1.5 * labels - 0.75 + rng.normal(size=200)
        a, b = (
            np.stack([np.zeros(200), shared + 0.5 * rng.normal(size=200)], axis=1).astype(np.float32) for _ in range(2)
        )
        found = statistics.paired_difference(metric, labels, a, b, resamples=300, seed=trial)
        held += found.low <= 0 <= found.high
    assert 0.91 <= held / trials <= 0.99


def test_pairing_is_sharper_than_comparing_intervals(make_outcomes) -> None:
    outcomes = make_outcomes(500, 2, 1.0)
    noise = np.random.default_rng(1).normal(size=outcomes.logits.shape).astype(np.float32)
    found = statistics.paired_difference("auroc", outcomes.labels, outcomes.logits, outcomes.logits + 0.3 * noise)
    alone = statistics.auroc_estimate(outcomes.labels, outcomes.logits)
    assert found.high - found.low < 0.6 * (alone.high - alone.low)
    assert found.low <= found.value <= found.high


def test_difference_counts_what_each_model_alone_has_right() -> None:
    labels = np.zeros(10, dtype=np.int64)
    labels[5:] = 1
    logits_b = np.eye(2, dtype=np.float32)[labels]
    logits_a = logits_b.copy()
    logits_a[0] = logits_a[0, ::-1]
    found = statistics.paired_difference("balanced_accuracy", labels, logits_a, logits_b)
    assert found.value == pytest.approx(-0.1)
    assert found.high == 0
    assert found.probability < 0.25
    back = statistics.paired_difference("balanced_accuracy", labels, logits_b, logits_a)
    assert back.value == pytest.approx(0.1)
    same = statistics.paired_difference("balanced_accuracy", labels, logits_a, logits_a)
    assert (same.value, same.low, same.high, same.probability) == (0, 0, 0, 0.5)


def test_a_perfect_model_is_not_certain() -> None:
    labels = np.repeat([0, 1], [30, 20])
    logits = 5 * np.eye(2, dtype=np.float32)[labels]
    assert statistics.balanced_accuracy_estimate(labels, labels).low < 0.99
    area = statistics.auroc_estimate(labels, logits)
    assert (area.value, area.high) == (1, 1)
    assert area.low == pytest.approx(statistics.wilson(20, 20).low)


def test_calibration_interval_reaches_down_for_a_calibrated_model() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 400)
    logits = np.stack([np.log(sure), np.log1p(-sure)], axis=1).astype(np.float32)
    labels = (rng.random(400) > sure).astype(np.int64)
    found = statistics.ece_estimate(labels, logits)
    assert found.low <= 0.01 < found.value <= found.high
    overconfident = statistics.ece_estimate(labels, 6 * logits)
    assert overconfident.low > found.high


def test_the_seed_decides_and_nothing_else(make_outcomes) -> None:
    outcomes = make_outcomes(200, 3, 1.0)
    first, again, other = (
        statistics.estimate("auroc", outcomes.labels, outcomes.logits, seed=seed, resamples=200) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_auroc_of_one_class_is_refused_in_words() -> None:
    with pytest.raises(WorkError, match="at least two classes"):
        statistics.auroc_estimate(np.zeros(5, dtype=np.int64), np.zeros((5, 2), dtype=np.float32))


def test_a_thousand_classes_take_seconds(make_outcomes) -> None:
    outcomes = make_outcomes(50_000, 1000, 3.0)
    began = time.process_time()
    found = statistics.estimate("balanced_accuracy", outcomes.labels, outcomes.logits)
    assert time.process_time() - began < 5  # 0.3 s on an idle core
    assert found.high - found.low < 0.012
