"""Outcomes: kept, put together, paired."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vitcore.errors import RequestError, WorkError
from vitcore.evals.outcomes import Outcomes, concat, pair


def subset(outcomes: Outcomes, rows: np.ndarray) -> Outcomes:
    return replace(outcomes, keys=outcomes.keys[rows], labels=outcomes.labels[rows], logits=outcomes.logits[rows])


def test_saved_outcomes_are_read_back_equal(tmp_path: Path, make_outcomes) -> None:
    outcomes = replace(make_outcomes(30, ("Katze", "犬", "oiseau"), 1.0), skipped=("broken/1",))
    url = str(tmp_path / "deep" / "outcomes.npz")
    outcomes.save(url)
    found = Outcomes.load(url)
    assert found.keys.tolist() == outcomes.keys.tolist()
    assert found.logits.dtype == np.float32
    assert np.array_equal(found.logits, outcomes.logits)
    assert np.array_equal(found.labels, outcomes.labels)
    assert (found.classes, found.skipped) == (outcomes.classes, outcomes.skipped)


def test_what_is_no_outcomes_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there are no outcomes at"):
        Outcomes.load(str(tmp_path / "none.npz"))
    for name, content in (("text.npz", b"hello"), ("empty.npz", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RequestError, match="holds no outcomes"):
            Outcomes.load(str(tmp_path / name))
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(RequestError, match="holds no outcomes"):
        Outcomes.load(str(tmp_path / "other.npz"))
    np.savez(tmp_path / "pickled.npz", format=np.array([{"code": "runs"}], dtype=object))
    with pytest.raises(RequestError, match="holds no outcomes"):
        Outcomes.load(str(tmp_path / "pickled.npz"))


def test_ranges_go_together_in_order(make_outcomes) -> None:
    whole = make_outcomes(50, 3, 1.0)
    parts = [subset(whole, np.arange(start, min(start + 20, 50))) for start in (0, 20, 40)]
    assert concat(parts).keys.tolist() == whole.keys.tolist()
    with pytest.raises(WorkError, match="twice"):
        concat([parts[0], parts[0]])
    with pytest.raises(WorkError, match="different classes"):
        concat([parts[0], replace(parts[1], classes=("x", "y", "z"))])


def test_pairing_follows_keys_and_class_names(make_outcomes) -> None:
    a = make_outcomes(40, ("cat", "dog", "fox"), 1.0)
    shuffled = subset(a, np.random.default_rng(0).permutation(40))
    # the same answers from a model that orders its classes otherwise and knows one more
    b = Outcomes(
        shuffled.keys,
        np.array([2, 0, 3])[shuffled.labels],
        np.stack([shuffled.logits[:, 1], np.full(40, -9, np.float32), shuffled.logits[:, 0], shuffled.logits[:, 2]], 1),
        ("dog", "wolf", "cat", "fox"),
    )
    first, second = pair(a, b)
    assert second.keys.tolist() == first.keys.tolist() == a.keys.tolist()
    assert second.classes == ("cat", "dog", "fox", "wolf")
    assert np.array_equal(second.labels, first.labels)
    assert np.array_equal(second.logits[:, :3], first.logits)


def test_outcomes_of_other_samples_or_labels_do_not_pair(make_outcomes) -> None:
    a = make_outcomes(40, 3, 1.0)
    with pytest.raises(RequestError, match="40 and 39, 39 of them shared"):
        pair(a, subset(a, np.arange(39)))
    with pytest.raises(RequestError, match="disagree about the class of 1 samples"):
        pair(a, replace(a, labels=np.append((a.labels[:1] + 1) % 3, a.labels[1:])))


def test_what_cannot_be_outcomes_is_refused(make_outcomes) -> None:
    a = make_outcomes(10, 3, 1.0)
    broken = a.logits.copy()
    broken[3, 1] = np.nan
    with pytest.raises(WorkError, match="not finite"):
        replace(a, logits=broken)
    with pytest.raises(WorkError, match="outside the 3 classes"):
        replace(a, labels=np.full(10, -1))
    with pytest.raises(WorkError, match="do not fit together"):
        replace(a, classes=("a", "b"))
    with pytest.raises(WorkError, match="not one sample"):
        subset(a, np.arange(0))
