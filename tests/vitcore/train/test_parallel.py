"""Weights, gradients and optimiser state in parts: what is learnt is the same, and checkpoints fit any ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoints import assert_close, parts, state
from tests.vitcore.train.test_selfsupervised import without_labels
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.loading.loader import TrainLoader
from vitcore.recipe import Recipe
from vitcore.sink import NullSink
from vitcore.train.accumulate import accumulate
from vitcore.train.learner import Learner
from vitcore.train.loop import train
from vitcore.train.request import TrainRequest, TrainResult, open_dataset
from vitcore.world import World

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 4
SHORT = {"train.duration": f"{STEPS} steps", "eval.every": "2 steps", "train.ema_decay": 0.8}


@pytest.fixture
def recipe(plain: Recipe, pairs: Recipe, request: pytest.FixtureRequest) -> Recipe:
    kind = request.param
    if kind == "contrast":
        return pairs
    return plain if kind == "classify" else without_labels(plain, kind)


@pytest.mark.parametrize("recipe", ["classify", "contrast", "moco", "dino"], indirect=True)
def test_parts_on_any_number_of_ranks_equal_one_whole(
    recipe: Recipe, make_request: Any, processes: Any, captioned: Dataset
) -> None:
    """Micro-batches, an average of the weights, a temperature without dimensions, momentum networks."""
    data = {"data": captioned.ref} if recipe.data.captions else {}
    overrides = SHORT if recipe.objective.kind != "dino" else {**SHORT, "train.ema_decay": None}
    alone, *sharded = (
        make_request(recipe, f"w{size}", overrides, parallel="fsdp", microbatch=3).model_copy(update=data)
        for size in (1, 2, 3)
    )
    result = train(alone, World(), NullSink())
    for size, request in zip((2, 3), sharded, strict=True):
        ranks = processes.group(size, {"tasks": [["train", request.model_dump(mode="json")]]})
        for rank in ranks:
            assert "error" not in rank[0]
            assert rank[0]["result"]["metrics"] == pytest.approx(result.metrics, abs=1e-5)
        assert_close(state(request, STEPS), state(alone, STEPS), 1e-5)
        theirs = TrainResult.model_validate(ranks[0][0]["result"])
        ours, expected = (load_file(Path(found.model) / "model.safetensors") for found in (theirs, result))
        assert_close(ours, expected, 1e-5)
        files = parts(Path(request.checkpoints) / f"step-{STEPS:08d}")
        sizes = [path.stat().st_size for path in files]
        assert len(sizes) == size
        assert max(sizes) < 1.6 * sum(sizes) / size
        commit = json.loads((Path(request.checkpoints) / f"step-{STEPS:08d}" / "state.json").read_text())
        cut = [name for name, tensor in commit["tensors"].items() if len(tensor["chunks"]) == size]
        assert any("blocks.1" in name for name in cut)


def test_a_checkpoint_goes_on_at_any_number_of_ranks_in_parts_or_whole(
    plain: Recipe, make_request: Any, processes: Any
) -> None:
    overrides = {**SHORT, "eval.every": "100%"}
    whole = make_request(plain, "whole", overrides)
    train(whole, World(), NullSink())
    expected = state(whole, STEPS)
    written = {
        ("ddp", 1): whole,
        ("fsdp", 2): make_request(plain, "two", overrides, parallel="fsdp"),
        ("ddp", 3): make_request(plain, "three", overrides),
    }
    for (_, size), request in written.items():
        if size > 1:
            processes.group(size, {"tasks": [["train", request.model_dump(mode="json")]]})
    for (mode, size), source in written.items():
        for other, ranks in (("ddp", 2), ("fsdp", 3), ("fsdp", 1)):
            place = Path(source.checkpoints).with_name(f"{mode}{size}-{other}{ranks}")
            shutil.copytree(source.checkpoints, place)
            for folder in (*place.glob("model-*"), *place.glob(f"step-*{STEPS}"), *place.glob(f"step-*{STEPS - 1}")):
                shutil.rmtree(folder)
            compute = source.compute.model_copy(update={"parallel": other})
            request = source.model_copy(update={"checkpoints": str(place), "compute": compute})
            answers = processes.group(ranks, {"tasks": [["train", request.model_dump(mode="json")]]})
            assert answers[0][0]["events"][0] == [STEPS - 2, "resumed"]
            assert_close(state(request, STEPS), expected, 1e-5)


def activations(request: TrainRequest) -> tuple[int, dict[str, torch.Tensor]]:
    """Bytes kept for the backward pass of a batch, and its gradients."""
    learner = Learner(request, open_dataset(request.recipe, request.data), World())
    with TrainLoader(learner.dataset, request.recipe.data, batch_size=20, seed=0, stop_step=1, threads=0) as loader:
        batch = next(loader)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(5)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        accumulate(learner, batch)
    gradients = {
        name: parameter.grad for name, parameter in learner.objective.named_parameters() if parameter.grad is not None
    }
    return sum(kept.values()), gradients


def test_computing_blocks_again_keeps_less_and_gives_the_same_gradients(plain: Recipe, make_request: Any) -> None:
    deep = {"model.depth": 8, "model.dropout": 0.2, "model.drop_path": 0.2}
    much, expected = activations(make_request(plain, "kept", deep))
    little, ours = activations(make_request(plain, "again", deep, recompute=True))
    assert little < 0.5 * much
    assert ours.keys() == expected.keys()
    assert all(torch.equal(gradient, expected[name]) for name, gradient in ours.items())


@pytest.mark.parametrize(("parallel", "compiled"), [("ddp", ["Classify"]), ("fsdp", ["Block", "Block"])])
def test_what_is_compiled_is_what_is_gathered_at_once(
    plain: Recipe, make_request: Any, monkeypatch: pytest.MonkeyPatch, parallel: str, compiled: list[str]
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: seen.append(type(module).__name__))
    request = make_request(plain, parallel=parallel, compile="on")
    Learner(request, open_dataset(request.recipe, request.data), World())
    assert seen == compiled
