"""Checkpoints: whole or absent, and none too many."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.checkpoints import parts
from vitcore.errors import RequestError, WorkError
from vitcore.train.checkpoint import CheckpointStore, Progress, Saver
from vitcore.train.checkpoint.saver import WORTHWHILE_MB, in_background, share
from vitcore.world import World

Damage = Callable[[Path], object]


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"model/w": torch.full((4, 3), float(step)), "optim/step/w": torch.tensor(float(step))}


def filled(url: object, *steps: int, keep: int = 9, best: dict[int, int] | None = None) -> CheckpointStore:
    store = CheckpointStore(str(url), "train-a", keep)
    for step in steps:
        store.save(Progress(step=step, best_step=(best or {}).get(step, 0)), tensors(step))
    return store


def newest(store: CheckpointStore) -> int | None:
    """Step of the newest checkpoint that is whole; it holds what was given."""
    for checkpoint in store.checkpoints():
        step = checkpoint.progress.step
        targets = {name: torch.zeros_like(tensor) for name, tensor in tensors(step).items()}
        if store.load(checkpoint, targets):
            assert all(torch.equal(targets[name], tensor) for name, tensor in tensors(step).items())
            return step
    return None


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


def test_the_newest_comes_back_with_all_it_held(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "run"), "train-a", 2)
    assert store.checkpoints() == []
    progress = Progress(step=7, skipped=[2, 5], bad_samples=3, best_step=4, best_metrics={"top1": 0.25})
    given = {"a": torch.randn(3, 2).t(), "b": torch.arange(3), "c": torch.tensor(1.5, dtype=torch.float64)}
    store.save(progress, given)
    again = CheckpointStore(str(tmp_path / "run"), "train-a", 2)
    (found,) = again.checkpoints()
    assert found.progress == progress
    assert {name: (t["dtype"], t["shape"]) for name, t in found.tensors.items()} == {
        "a": ("float32", [2, 3]),
        "b": ("int64", [3]),
        "c": ("float64", []),
    }
    targets = {name: torch.empty_like(tensor) for name, tensor in given.items()}
    assert again.load(found, targets)
    assert all(torch.equal(targets[name], tensor) for name, tensor in given.items())


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    assert newest(filled(tmp_path, 9, 10, 100, 99)) == 100


DAMAGES: dict[str, Damage] = {
    "no commit": lambda folder: (folder / "state.json").unlink(),
    "half a commit": lambda folder: (folder / "state.json").write_text('{"format": 1, "iden'),
    "no object": lambda folder: (folder / "state.json").write_text("[1]"),
    "no tensors": lambda folder: parts(folder)[0].unlink(),
    "a flipped bit": lambda folder: flip(parts(folder)[0]),
    "cut short": lambda folder: parts(folder)[0].write_bytes(b"short"),
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
        CheckpointStore(str(tmp_path), "train-b", 2).checkpoints()
    commit = tmp_path / "step-00000010" / "state.json"
    commit.write_text(json.dumps(json.loads(commit.read_text()) | {"format": 4}))
    with pytest.raises(RequestError, match="format 4; this release reads 3: upgrade"):
        CheckpointStore(str(tmp_path), "train-a", 2).checkpoints()
    commit.write_text(json.dumps(json.loads(commit.read_text()) | {"format": 2}))
    with pytest.raises(RequestError, match="format 2; this release reads 3: train it anew"):
        CheckpointStore(str(tmp_path), "train-a", 2).checkpoints()


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


def test_a_zombie_cannot_commit(tmp_path: Path) -> None:
    """A process that was thought dead and comes back: its files hurt nobody, its commit is refused."""
    old, new = (CheckpointStore(str(tmp_path), "train-a", 9) for _ in range(2))
    assert old.claim() == 1
    old.save(Progress(step=10), tensors(10))
    assert new.claim() == 2
    with pytest.raises(WorkError, match=r"attempt 2 at the training in .* has begun; this older one stops"):
        old.save(Progress(step=20), tensors(20))
    assert newest(new) == 10
    new.save(Progress(step=20), tensors(20))
    with pytest.raises(WorkError, match="this older one stops"):
        old.save(Progress(step=20), {name: tensor + 1 for name, tensor in tensors(20).items()})
    assert newest(new) == 20


def test_states_are_written_while_the_caller_goes_on_and_changes_them(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), "train-a", 9)
    state = tensors(1)
    with Saver(store, "on") as saver:
        for step in (1, 2, 3):
            for name, tensor in tensors(step).items():
                state[name].copy_(tensor)
            progress = Progress(step=step)
            saver.save(progress, state)
            progress.step = 99
            for tensor in state.values():
                tensor.fill_(-1)
        saver.wait()
        assert saver.committed() == [1, 2, 3]
        assert saver.committed() == []
    assert [checkpoint.progress.step for checkpoint in store.checkpoints()] == [3, 2, 1]
    assert newest(store) == 3


def test_what_goes_wrong_in_the_background_is_raised_at_the_next_state(tmp_path: Path) -> None:
    (tmp_path / "step-00000001").write_text("a file where the folder should be")
    with Saver(CheckpointStore(str(tmp_path), "train-a", 9), "on") as saver:
        saver.save(Progress(step=1), tensors(1))
        with pytest.raises(OSError, match="step-00000001"):
            saver.save(Progress(step=2), tensors(2))
    assert not (tmp_path / "step-00000002").exists()


def test_only_large_states_are_worth_a_copy() -> None:
    small, large = ({"w": torch.empty(megabytes * 2**18)} for megabytes in (WORTHWHILE_MB - 1, WORTHWHILE_MB))
    assert [in_background("auto", state) for state in (small, large)] == [False, True]
    assert in_background("on", small)
    assert not in_background("off", large)


def test_ranks_share_the_writing_and_rank_0_writes_what_is_its_own() -> None:
    state = {f"w{n}": torch.empty(size) for n, size in enumerate((8, 5, 4, 4, 3))} | {"mean": torch.empty(2)}
    shares = [share(state, {"mean"}, World(rank, 3)) for rank in range(3)]
    assert sorted(name for mine in shares for name in mine) == sorted(state)
    assert "mean" in shares[0]
    assert [sum(tensor.numel() for tensor in mine.values()) for mine in shares] == [10, 8, 8]
