"""The linear probe against Newton's method, and what both probes make of features that say something."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitcore.errors import RequestError
from vitcore.evals.answers import Answers, join
from vitcore.evals.probe import linear_outcomes, linear_probe, logistic_regression, neighbour_outcomes

CPU = torch.device("cpu")


def newton(features: np.ndarray, labels: np.ndarray, classes: int, decay: float) -> np.ndarray:
    """Logits of the minimum of mean cross-entropy + λ/2 · ‖W‖², in float64, features centred and scaled as a whole."""
    x = features.astype(np.float64)
    x = x - x.mean(0)
    x = x / np.sqrt((x**2).mean())
    rows, width = x.shape
    x1 = np.hstack([x, np.ones((rows, 1))])
    onehot = np.eye(classes)[labels]
    theta = np.zeros((classes, width + 1))
    ridge = np.diag(np.r_[np.full(width, decay), 0.0])
    for _ in range(50):
        logits = x1 @ theta.T
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        gradient = (p - onehot).T @ x1 / rows + theta @ ridge
        hessian = np.zeros((classes, width + 1, classes, width + 1))
        for i in range(classes):
            for j in range(classes):
                weight = p[:, i] * ((i == j) - p[:, j])
                hessian[i, :, j] = (x1 * weight[:, None]).T @ x1 / rows + (i == j) * ridge
        size = classes * (width + 1)
        step = np.linalg.lstsq(hessian.reshape(size, size), gradient.ravel(), rcond=None)[0]
        theta -= step.reshape(theta.shape)
    return x1 @ theta.T


def toy_features(count: int, seed: int, signal: float = 1.0) -> Answers:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((3, 8))
    labels = rng.integers(0, 3, count)
    values = 40 + 5 * (signal * centres[labels] + rng.standard_normal((count, 8)))
    keys = np.array([f"{seed}-{row}" for row in range(count)])
    return Answers(keys, np.arange(count), labels, values.astype(np.float32))


@pytest.mark.parametrize("decay", [1e-3, 1e-1])
def test_the_solution_is_that_of_newtons_method(decay: float) -> None:
    data = toy_features(150, 0)
    features, labels = torch.from_numpy(data.values), torch.from_numpy(data.labels)
    found = logistic_regression(features, labels, 3, decay=decay).logits(features).numpy()
    expected = newton(data.values, data.labels, 3, decay)
    centred = found - found.mean(1, keepdims=True)  # the bias is free up to a shift of all classes
    assert np.allclose(centred, expected - expected.mean(1, keepdims=True), atol=5e-3)
    far = logistic_regression(features, labels, 3, decay=10.0)
    warm = logistic_regression(features, labels, 3, decay=decay, start=far).logits(features).numpy()
    assert np.allclose(warm - warm.mean(1, keepdims=True), centred, atol=5e-3)


@pytest.mark.parametrize("outcomes_of", [linear_outcomes, neighbour_outcomes])
def test_features_that_say_something_beat_chance_and_noise_does_not(outcomes_of) -> None:
    classes = ("a", "b", "c")
    found = outcomes_of(toy_features(300, 0), toy_features(200, 1), classes, CPU)
    assert (found.predictions == found.labels).mean() > 0.7
    assert found.keys[0] == "1-0"
    noise = outcomes_of(toy_features(300, 2, signal=0), toy_features(200, 3, signal=0), classes, CPU)
    assert (noise.predictions == noise.labels).mean() < 0.5


def test_neighbours_logits_are_shares_of_the_vote() -> None:
    bank, queries = toy_features(60, 0), toy_features(40, 1)
    found = neighbour_outcomes(bank, queries, ("a", "b", "c"), CPU)
    shares = np.exp(found.logits.astype(np.float64))
    assert np.allclose(shares.sum(1), 1, atol=1e-5)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries.values, bank.values)]
    cosines = unit[0] @ unit[1].T
    for row in range(40):
        nearest = np.argsort(-cosines[row])[:20]
        votes = np.bincount(bank.labels[nearest], np.exp(cosines[row, nearest] / 0.07), minlength=3)
        assert np.allclose(shares[row], votes / votes.sum(), atol=1e-3)


def test_the_decay_follows_the_noise() -> None:
    """Many useless features want much decay, a plain problem little."""
    rng = np.random.default_rng(0)
    noisy = torch.from_numpy(rng.standard_normal((80, 60)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, 3, 80))
    clear = toy_features(300, 0, signal=3.0)
    assert (
        linear_probe(noisy, labels, 3).decay
        > linear_probe(torch.from_numpy(clear.values), torch.from_numpy(clear.labels), 3).decay
    )


def test_photographs_without_a_label_are_no_bank() -> None:
    bank, queries = toy_features(50, 0), toy_features(20, 1)
    half = np.where(np.arange(50) < 25, -1, bank.labels)
    masked = bank._replace(labels=half)
    kept = linear_outcomes(bank.some(half >= 0), queries, ("a", "b", "c"), CPU)
    assert np.array_equal(linear_outcomes(masked, queries, ("a", "b", "c"), CPU).logits, kept.logits)
    with pytest.raises(RequestError, match="--bank"):
        neighbour_outcomes(bank._replace(labels=np.full(50, -1)), queries, ("a", "b", "c"), CPU)


def test_answers_of_ranges_go_together() -> None:
    whole = toy_features(10, 0)
    first, second = whole.some(np.arange(10) < 4), whole.some(np.arange(10) >= 4)
    joined = join([first._replace(skipped=("x",)), second])
    assert joined.keys.tolist() == whole.keys.tolist()
    assert np.array_equal(joined.values, whole.values)
    assert joined.skipped == ("x",)
