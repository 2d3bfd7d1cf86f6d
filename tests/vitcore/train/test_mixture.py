"""Training on several datasets: exact wherever it is interrupted, on the classes of all of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from vitcore.data.dataset.manifest import Dataset, publish
from vitcore.errors import RequestError
from vitcore.models import load_pretrained
from vitcore.recipe import Recipe, apply_overrides
from vitcore.sink import NullSink
from vitcore.train.learner import Learner
from vitcore.train.loop import train
from vitcore.train.request import TrainRequest, open_dataset
from vitcore.world import World

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def mixed(toy: Dataset, tmp_path: Path, lively: Recipe, make_request: Any) -> TrainRequest:
    """A training on `toy` and a copy of it whose classes are "g", "r" and "x": two of three are its own."""
    shutil.copytree(toy.url, tmp_path / "copy")
    manifest = toy.manifest.model_copy(update={"classes": ("g", "r", "x")})
    shards = {split: toy.shards(split) for split in toy.manifest.splits}
    recipe = apply_overrides(lively, {"data.mixture": (2, 1), "data.augment.mixup": 0.0, "train.ema_decay": None})
    request: TrainRequest = make_request(recipe, "whole")
    copy = publish(str(tmp_path / "copy"), manifest, shards, expected=toy.digest)
    return request.model_copy(update={"mixture": (copy,)})


def test_a_mixture_resumes_exactly_and_knows_all_classes(mixed: TrainRequest, processes: Any) -> None:
    (whole,) = processes.group(1, {"tasks": [["train", mixed.model_dump(mode="json")]]})
    assert load_pretrained(whole[0]["result"]["model"]).card.classes == ("b", "g", "r", "x")
    cut = Path(mixed.checkpoints).with_name("cut")
    shutil.copytree(mixed.checkpoints, cut)
    for path in cut.glob("*-*"):
        if int(path.name.split("-")[1]) > 3:
            shutil.rmtree(path)
    resumed = mixed.model_copy(update={"checkpoints": str(cut)})
    ranks = processes.group(2, {"tasks": [["train", resumed.model_dump(mode="json")]]})
    for step in range(3, 8):
        shown = [sample for rank in ranks for sample in rank[0]["samples"][str(step)]]
        assert shown == whole[0]["samples"][str(step)]
    assert ranks[0][0]["result"]["step"] == 8
    waits = [(m["train/data_wait_s"], m["train/data_wait_max_s"]) for m in ranks[0][0]["metrics"].values()]
    assert all(most >= mean > 0 for mean, most in waits)
    assert any(most < 1.999 * mean for mean, most in waits)  # each rank has waited, and not one for both


def test_a_balanced_loss_weighs_the_classes_of_the_mixture(mixed: TrainRequest) -> None:
    recipe = apply_overrides(mixed.recipe, {"objective.class_weight": "balanced"})
    request = mixed.model_copy(update={"recipe": recipe})
    learner = Learner(request, open_dataset(recipe, request.data), World())
    counts = learner.mixture.class_counts("train")
    b, g, r = learner.dataset.split("train").class_counts  # "g", "r" and "x" in the copy
    expected = (4 / 3 * b, 4 / 3 * g + 2 / 3 * b, 4 / 3 * r + 2 / 3 * g, 2 / 3 * r)
    assert counts == [round(count) for count in expected]


@pytest.mark.parametrize("field", ["train.duration", "optim.warmup", "eval.every"])
def test_a_mixture_counts_in_steps_or_samples(mixed: TrainRequest, field: str) -> None:
    request = mixed.model_copy(update={"recipe": apply_overrides(mixed.recipe, {field: "1 epochs"})})
    with pytest.raises(RequestError, match=f"{field} is '1 epochs', but a mixture has no epochs; give it in steps"):
        train(request, World(), NullSink())


def test_weights_and_datasets_go_together(mixed: TrainRequest) -> None:
    with pytest.raises(RequestError, match="2 weights are given for 1 dataset"):
        train(mixed.model_copy(update={"mixture": ()}), World(), NullSink())
