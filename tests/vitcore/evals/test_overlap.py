"""A report says how much of a split is known from training, and what the score is without it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from vitcore.data.audit.audit import AuditConfig
from vitcore.data.audit.overlap import COPIES, Overlap, OverlapSummary
from vitcore.evals import overlap as module
from vitcore.evals import style
from vitcore.evals.outcomes import Outcomes
from vitcore.evals.overlap import training_overlap
from vitcore.evals.pairs import pairs_figure
from vitcore.evals.report import Report, TrainingOverlap, build_report

KEYS = np.array([f"k{number}" for number in range(8)])


def overlap_of(exact: list[int], near: list[int], training: str = "t1") -> Overlap:
    """An overlap of a split of 8 photographs."""
    summary = OverlapSummary(
        evaluation="e",
        split="test",
        training=training,
        training_splits=("train",),
        config=AuditConfig(),
        samples=8,
        exact=len(exact),
        near=len(near),
        left_out=0,
    )
    rows = sorted(exact + near)
    columns = {name: [None] * len(rows) for name in COPIES.names}
    columns |= {"row": rows, "exact": [row in exact for row in rows]}
    return Overlap(summary, pa.table(columns, schema=COPIES))


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for a dataset whose split has 8 photographs."""
    monkeypatch.setattr(module, "sample_keys", lambda *_: KEYS.astype(object))
    return SimpleNamespace(split=lambda _: SimpleNamespace(samples=8))


def outcomes(right: list[bool], keys: np.ndarray = KEYS) -> Outcomes:
    """Answers to two classes in turn, right or wrong."""
    labels = np.arange(len(keys)) % 2
    logits = np.zeros((len(keys), 2), np.float32)
    logits[np.arange(len(keys)), np.where(right, labels, 1 - labels)] = 3
    return Outcomes(keys, labels, logits, ("x", "y"))


def test_the_clean_score_leaves_out_what_is_known(dataset: SimpleNamespace) -> None:
    answers = outcomes([True, True, True, True, True, False, False, True])
    found = training_overlap(dataset, "test", answers, [overlap_of([0], [3]), overlap_of([3], [1, 0], "t2")])
    assert (found.training, found.samples, found.exact, found.near) == (("t1", "t2"), 8, 2, 1)
    assert found.fractions == {"overlap_exact": 0.25, "overlap_near": 0.125}
    assert found.clean["top1"].value == pytest.approx(3 / 5)
    assert found.clean["top1"].n == 5
    report = build_report(answers, model="m", dataset="e", split="test", overlap=found, resamples=50)
    assert report.metrics["top1"].value == pytest.approx(6 / 8)
    assert Report.model_validate_json(report.model_dump_json()) == report
    (remark,) = report.remarks
    assert remark.startswith("3 of the 8 photographs have a copy among the training photographs (2 exact, 1 near)")
    assert str(found.clean["balanced_accuracy"]) in remark


def test_photographs_that_could_not_be_evaluated_do_not_count_in_the_clean_score(dataset: SimpleNamespace) -> None:
    some = outcomes([True, False, True], KEYS[[1, 4, 6]])
    found = training_overlap(dataset, "test", some, [overlap_of([0, 1], [])])
    assert (found.exact, found.clean["top1"].n) == (2, 2)


@pytest.mark.parametrize("known", [[], list(range(8))])
def test_nothing_or_everything_known_leaves_no_clean_score(dataset: SimpleNamespace, known: list[int]) -> None:
    found = training_overlap(dataset, "test", outcomes([True] * 8), [overlap_of(known, [])])
    assert found.clean == {}
    report = build_report(outcomes([True] * 8), model="m", dataset="e", split="test", overlap=found, resamples=50)
    assert len(report.remarks) == 1


def test_what_could_not_be_compared_is_said(dataset: SimpleNamespace) -> None:
    found = training_overlap(dataset, "test", outcomes([True] * 8), [], ["Not compared with x: it is gone."])
    assert found.fractions == {}
    report = build_report(outcomes([True] * 8), model="m", dataset="e", split="test", overlap=found, resamples=50)
    assert report.remarks == ("Not compared with x: it is gone.",)
    unknown = build_report(outcomes([True] * 8), model="m", dataset="e", split="test", resamples=50)
    assert (unknown.overlap, unknown.remarks) == (None, ())


def test_a_report_of_before_is_still_read() -> None:
    report = build_report(outcomes([True] * 8), model="m", dataset="e", split="test", resamples=50)
    assert Report.model_validate(report.model_dump(exclude={"overlap"})) == report
    assert TrainingOverlap(training=(), samples=1, exact=0, near=0, clean={}).missing == ()


def test_pairs_are_drawn(toy) -> None:
    rows = [
        {"split": "train", "row": row, "key": f"a-very-long-key-of-photograph-{row}", "other_split": "val"}
        | {"other_row": row + 1, "other_key": "b", "distance": row % 3, "similarity": None if row % 2 else 0.93}
        for row in range(7)
    ]
    for count in (1, 7):
        made = pairs_figure(toy, toy, pa.Table.from_pylist(rows[:count]), "Pairs", most=5)
        assert style.to_png(made).startswith(b"\x89PNG")
        drawn = [axes for axes in made.axes if axes.images]
        assert len(drawn) == min(count, 5)
        assert all(len(axes.images) == 2 for axes in drawn)
