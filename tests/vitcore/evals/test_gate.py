"""The promotion gate: who passes, who does not, and what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vitcore.errors import RequestError
from vitcore.evals.gate import decide
from vitcore.evals.metrics import MetricName

METRICS: tuple[MetricName, ...] = ("top1", "balanced_accuracy", "auroc")


@pytest.mark.parametrize("metric", METRICS)
def test_a_first_champion_must_beat_chance(metric: MetricName, make_outcomes) -> None:
    able = decide(make_outcomes(300, 2, 2.0), None, metric=metric)
    assert able.passed
    assert able.difference is None
    blind = decide(make_outcomes(300, 2, 0.0), None, metric=metric)
    assert not blind.passed
    assert "not clearly above chance" in blind.reasons[0]


def test_naming_the_majority_does_not_beat_chance(make_outcomes) -> None:
    labels = np.repeat([0, 1], [270, 30])
    majority = replace(
        make_outcomes(300, 2, 1.0), labels=labels, logits=np.tile(np.array([1, 0], np.float32), (300, 1))
    )
    assert not decide(majority, None, metric="top1").passed
    assert not decide(majority, None, metric="balanced_accuracy").passed


@pytest.mark.parametrize("metric", METRICS)
def test_an_equal_passes_a_worse_is_refused_a_better_passes(metric: MetricName, make_outcomes) -> None:
    weak, strong = make_outcomes(2000, 3, 1.0), make_outcomes(2000, 3, 1.6)
    assert weak.labels.tolist() == strong.labels.tolist()
    same = decide(strong, strong, metric=metric, resamples=300)
    assert same.passed
    assert same.difference is not None
    assert same.difference.value == same.difference.low == same.difference.high == 0
    worse = decide(weak, strong, metric=metric, resamples=300)
    assert not worse.passed
    assert "not excluded" in worse.reasons[1]
    assert "scores lower" in worse.reasons[2]
    better = decide(strong, weak, metric=metric, resamples=300)
    assert better.passed
    assert better.difference is not None
    assert better.difference.low > 0


def test_a_small_loss_within_the_margin_is_still_a_step_back(make_outcomes) -> None:
    champion = make_outcomes(4000, 2, 2.0)
    logits = champion.logits.copy()
    right = np.flatnonzero(champion.predictions == champion.labels)[:2]
    logits[right] = logits[right, ::-1]
    decision = decide(replace(champion, logits=logits), champion)
    assert decision.difference is not None
    assert -0.01 < decision.difference.low < decision.difference.value < 0
    assert "is excluded" in decision.reasons[1]
    assert not decision.passed


def test_a_better_score_by_luck_does_not_pass(make_outcomes) -> None:
    champion = make_outcomes(60, 2, 1.0)
    logits = champion.logits.copy()
    wrong = np.flatnonzero(champion.predictions != champion.labels)[:6]
    right = np.flatnonzero(champion.predictions == champion.labels)[:5]
    for rows in (wrong, right):
        logits[rows] = logits[rows, ::-1]
    candidate = replace(champion, logits=logits)
    decision = decide(candidate, champion, metric="top1")
    assert decision.difference is not None
    assert decision.difference.value > 0
    assert not decision.passed
    assert decide(candidate, champion, metric="top1", margin=0.2).passed


def test_requests_the_gate_refuses(make_outcomes) -> None:
    outcomes = make_outcomes(50, 2, 1.0)
    with pytest.raises(RequestError, match="margin is -1"):
        decide(outcomes, None, margin=-1)
    with pytest.raises(RequestError, match="different samples"):
        decide(outcomes, make_outcomes(51, 2, 1.0))
