"""Checkpoints: whole or absent, and none too many."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vitcore.errors import RequestError
from vitcore.train.checkpoint import CheckpointStore, Progress

Damage = Callable[[Path], object]


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"model/w": torch.full((4, 3), float(step)), "optim/step/w": torch.tensor(float(step))}


def filled(url: object, *steps: int, keep: int = 9, best: dict[int, int] | None = None) -> CheckpointStore:
    store = CheckpointStore(str(url), "train-a", keep)
    for step in steps:
        store.save(Progress(step=step, best_step=(best or {}).get(step, 0)), tensors(step))
    return store


def newest(store: CheckpointStore) -> int | None:
    found = store.newest()
    if found is None:
        return None
    progress, loaded = found
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors(progress.step).items())
    return progress.step


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


def test_the_newest_comes_back_with_all_it_held(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "run"), "train-a", 2)
    assert store.newest() is None
    progress = Progress(step=7, skipped=[2, 5], bad_samples=3, best_step=4, best_metrics={"top1": 0.25})
    given = {"a": torch.randn(3, 2).t(), "b": torch.arange(3), "c": torch.tensor(1.5, dtype=torch.float64)}
    store.save(progress, given)
    found = CheckpointStore(str(tmp_path / "run"), "train-a", 2).newest()
    assert found is not None
    assert found[0] == progress
    assert {name: t.dtype for name, t in found[1].items()} == {name: t.dtype for name, t in given.items()}
    assert all(torch.equal(found[1][name], tensor) for name, tensor in given.items())


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    assert newest(filled(tmp_path, 9, 10, 100, 99)) == 100


DAMAGES: dict[str, Damage] = {
    "no commit": lambda folder: (folder / "state.json").unlink(),
    "half a commit": lambda folder: (folder / "state.json").write_text('{"format": 1, "iden'),
    "no object": lambda folder: (folder / "state.json").write_text("[1]"),
    "no tensors": lambda folder: (folder / "state.safetensors").unlink(),
    "a flipped bit": lambda folder: flip(folder / "state.safetensors"),
    "cut short": lambda folder: (folder / "state.safetensors").write_bytes(b"short"),
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_none_and_an_older_one_is_used(tmp_path: Path, damage: Damage) -> None:
    store = filled(tmp_path, 10, 20, 30)
    damage(tmp_path / "step-00000030")
    assert newest(store) == 20
    damage(tmp_path / "step-00000020")
    assert newest(store) == 10
    damage(tmp_path / "step-00000010")
    assert newest(store) is None


def test_a_foreign_training_and_another_format_are_refused(tmp_path: Path) -> None:
    filled(tmp_path, 10)
    with pytest.raises(RequestError, match="holds checkpoints of train-a, not of train-b; give another folder"):
        CheckpointStore(str(tmp_path), "train-b", 2).newest()
    commit = tmp_path / "step-00000010" / "state.json"
    commit.write_text(json.dumps(json.loads(commit.read_text()) | {"format": 3}))
    with pytest.raises(RequestError, match="format 3; this release reads 2: upgrade"):
        CheckpointStore(str(tmp_path), "train-a", 2).newest()
    commit.write_text(json.dumps(json.loads(commit.read_text()) | {"format": 1}))
    with pytest.raises(RequestError, match="format 1; this release reads 2: train it anew"):
        CheckpointStore(str(tmp_path), "train-a", 2).newest()


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    filled(tmp_path, 10, 20, 30, 40, keep=keep)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{n:08d}" for n in (10, 20, 30, 40)[-keep:]]


def test_models_that_a_kept_checkpoint_names_are_kept(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")

    def kept_after(step: int, best: int) -> list[int]:
        model = tmp_path / f"model-{step:08d}"
        model.mkdir()
        (model / "config.json").write_text("{}")
        filled(tmp_path, step, keep=2, best={step: best})
        return sorted(int(path.name[6:]) for path in tmp_path.glob("model-*"))

    assert kept_after(10, best=10) == [10]
    assert kept_after(20, best=20) == [10, 20]
    assert kept_after(30, best=20) == [20]
    assert kept_after(40, best=20) == [20]
    assert kept_after(50, best=50) == [20, 50]
    assert (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_tidying_drops_what_is_newer_and_temporaries_so_that_keeping_one_keeps_a_whole_one(
    tmp_path: Path, damage: Damage
) -> None:
    store = filled(tmp_path, 10, 20, 30)
    damage(tmp_path / "step-00000030")
    (tmp_path / "step-00000020" / ".state.json.0a1b.tmp").write_text("half")
    (tmp_path / "model-00000010").mkdir()
    (tmp_path / "model-00000010" / ".model.safetensors.77.tmp").write_text("half")
    (tmp_path / "model-00000010" / "model.safetensors").write_text("whole")
    assert newest(store) == 20
    store.tidy(20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-00000010", "step-00000010", "step-00000020"]
    assert not list(tmp_path.rglob("*.tmp"))
    assert (tmp_path / "model-00000010" / "model.safetensors").exists()
    filled(tmp_path, 25, keep=1)
    assert newest(store) == 25


def test_it_works_on_a_store_that_is_not_a_disk() -> None:
    url = f"memory://checkpoints-{id(object())}"
    store = filled(url, 1, 2, 3, keep=2)
    store.tidy(3)
    assert newest(store) == 3
    store.tidy(2)
    assert newest(store) == 2
