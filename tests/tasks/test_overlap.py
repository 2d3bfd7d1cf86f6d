"""What an evaluation learns of the photographs its model was trained on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import tasks.overlap
from tasks.on_mlflow.lineage import Ancestor
from tasks.on_mlflow.registry import DATASET
from tasks.overlap import measure_overlap
from tasks.register import DATA_URL
from tasks.settings import load
from vitcore.data.audit.overlap import find
from vitcore.data.dataset.manifest import Dataset
from vitcore.evals.outcomes import Outcomes

MODEL = SimpleNamespace(card=SimpleNamespace(recipe=None))


def ancestor(role: str, url: str | None, digest: str, *above: Ancestor) -> Ancestor:
    tags = {DATASET: digest} | ({DATA_URL: url} if url else {})
    version = SimpleNamespace(tags=tags)
    return Ancestor.model_construct(role=role, ref="models:/m/1", version=version, dataset=digest, ancestors=above)


@pytest.fixture
def answers(toy: Dataset) -> Outcomes:
    labels = toy.index("val").labels
    logits = np.eye(3, dtype=np.float32)[labels]
    return Outcomes(toy.index("val").keys.astype(np.str_), labels, logits, ("b", "g", "r"))


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch):
    """`trained_on(node)`: the lineage of whatever model is asked for."""
    return lambda node: monkeypatch.setattr(tasks.overlap, "lineage", lambda *_: node)


def test_overlap_with_all_it_was_made_from_is_found_and_kept(toy: Dataset, answers: Outcomes, trained_on) -> None:
    teacher = ancestor("teacher", toy.url, toy.digest)
    gone = ancestor("parent", f"{toy.url}-gone", "0" * 16)
    trained_on(ancestor("self", toy.url, toy.digest, teacher, gone))
    found = measure_overlap(load(), "models:/m/1", MODEL, toy, "val", answers)
    assert found is not None
    assert found.training == (toy.digest,)  # once, though the teacher was trained on it, too
    assert (found.samples, found.exact) == (47, 0)
    (missing,) = found.missing
    assert "-gone" in missing
    assert find(toy, "val", toy.digest) is not None


def test_what_was_kept_is_not_looked_for_again(
    toy: Dataset, answers: Outcomes, trained_on, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on(ancestor("self", toy.url, toy.digest))
    first = measure_overlap(load(), "models:/m/1", MODEL, toy, "val", answers)
    monkeypatch.setattr(tasks.overlap, "leakage", None)
    assert measure_overlap(load(), "models:/m/1", MODEL, toy, "val", answers) == first


def test_too_much_to_compare_names_the_command(
    toy: Dataset, answers: Outcomes, trained_on, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on(ancestor("self", toy.url, toy.digest))
    monkeypatch.setattr(tasks.overlap, "MOST", 100)
    monkeypatch.setattr(tasks.overlap, "find", lambda *_: None)
    found = measure_overlap(load(), "models:/m/1", MODEL, toy, "val", answers)
    assert found is not None
    assert (found.training, found.fractions) == ((), {})
    assert f"vit audit {toy.url} --against {toy.url} --split val --trained train" in found.missing[0]


def test_a_model_without_a_record_has_no_overlap(toy: Dataset, answers: Outcomes, trained_on, tmp_path: Path) -> None:
    assert measure_overlap(load(), "timm:vit", MODEL, toy, "val", answers) is None
    trained_on(ancestor("self", None, toy.digest))
    assert measure_overlap(load(), "models:/m/1", MODEL, toy, "val", answers) is None
