"""Recall both ways against counting by hand, its intervals, and what guessing would find."""

from __future__ import annotations

import numpy as np
import pytest

from vitcore.evals.retrieval import RetrievalReport, build_retrieval_report, chance, clustered_wilson
from vitcore.evals.statistics import wilson


def gallery(photographs: int, captions: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((photographs, 16))
    owners = np.repeat(np.arange(photographs), captions)
    texts = images[owners] + noise * rng.standard_normal((len(owners), 16))
    images, texts = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, texts))
    return images.astype(np.float32), texts.astype(np.float32), owners


def report_of(images: np.ndarray, texts: np.ndarray, owners: np.ndarray, **more: object) -> RetrievalReport:
    return build_retrieval_report(images, texts, owners, model="m", dataset="d", split="test", **more)  # type: ignore[arg-type]


def test_recall_is_what_counting_finds() -> None:
    images, texts, owners = gallery(60, 3, 1.0)
    report = report_of(images, texts, owners)
    similar = images @ texts.T
    ranks_of_images = [
        min(int((similar[row] > similar[row, own]).sum()) for own in np.flatnonzero(owners == row)) for row in range(60)
    ]
    ranks_of_texts = [int((similar[:, place] > similar[owner, place]).sum()) for place, owner in enumerate(owners)]
    for k in (1, 5, 10):
        # Before an image's nearest caption no other of its own can stand.
        assert report.image_to_text.recall[f"recall_at_{k}"].value == np.mean([rank < k for rank in ranks_of_images])
        assert report.text_to_image.recall[f"recall_at_{k}"].value == np.mean([rank < k for rank in ranks_of_texts])
    assert report.image_to_text.median_rank == np.median(ranks_of_images) + 1
    assert report.text_to_image.median_rank == np.median(ranks_of_texts) + 1
    assert 0.1 < report.text_to_image.recall["recall_at_1"].value < 0.9
    assert (report.samples, report.captions) == (60, 180)
    assert (report.image_to_text.queries, report.image_to_text.gallery) == (60, 180)


def test_a_report_goes_through_json_unchanged_and_names_its_metrics() -> None:
    report = report_of(*gallery(20, 2, 0.5), uncaptioned=3, skipped=("x",))
    assert RetrievalReport.model_validate_json(report.model_dump_json()) == report
    assert set(report.metrics) == {
        f"{side}_recall_at_{k}" for side in ("image_to_text", "text_to_image") for k in (1, 5, 10)
    }
    assert report.protocol == "retrieval"
    assert any("3 photographs without a caption" in remark for remark in report.remarks)


def test_one_caption_a_photograph_gives_wilsons_interval() -> None:
    report = report_of(*gallery(80, 1, 1.0))
    found = report.text_to_image.recall["recall_at_1"]
    assert found == wilson(round(found.value * 80), 80)
    assert found.low < found.value < found.high


def test_captions_that_always_agree_count_once() -> None:
    """Five captions that are all right or all wrong say no more than one; independent ones say as much as they are."""
    rng = np.random.default_rng(0)
    of_each = rng.random(100) < 0.5
    groups = np.repeat(np.arange(100), 5)
    together = clustered_wilson(of_each[groups], groups)
    alone = wilson(int(of_each.sum()), 100)
    assert together.value == alone.value
    assert together.n == 500
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=0.02)
    apart = clustered_wilson(rng.random(500) < 0.5, groups)
    assert apart.high - apart.low == pytest.approx(2 * 1.96 * 0.5 / 500**0.5, rel=0.15)
    perfect = clustered_wilson(np.ones(500, dtype=bool), groups)
    assert (perfect.low, perfect.high) == (wilson(100, 100).low, 1.0)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(150), 5)
    held = 0
    for _ in range(300):
        rates = rng.beta(1, 1, 150)
        found = clustered_wilson(rng.random(750) < rates[groups], groups)
        held += found.low <= 0.5 <= found.high
    assert held / 300 > 0.92


def test_chance_is_what_random_embeddings_find() -> None:
    assert chance(np.ones(4, np.int64), 100, 5) == pytest.approx(0.05)
    assert chance(np.full(4, 5), 25, 1) == pytest.approx(0.2)
    assert chance(np.array([3]), 4, 10) == 1
    found = [report_of(*gallery(50, 5, 1e6, seed)) for seed in range(20)]
    for side in ("image_to_text", "text_to_image"):
        mean = np.mean([getattr(report, side).recall["recall_at_10"].value for report in found])
        assert mean == pytest.approx(getattr(found[0], side).chance["recall_at_10"], abs=0.03)
