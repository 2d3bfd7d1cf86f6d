"""Interrupted and resumed equals uninterrupted, bit for bit, at fixed ranks; and the same samples at any number."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import read_state
from vitcore.errors import RequestError
from vitcore.recipe import Recipe
from vitcore.sink import NullSink
from vitcore.train.loop import train
from vitcore.train.request import TrainRequest
from vitcore.world import World

pytestmark = pytest.mark.usefixtures("one_thread")
TOTAL = 8
CUTS = (1, 3, 4, 5, 7)


def interrupted(request: TrainRequest, folder: str, cut: int) -> TrainRequest:
    """The training as it lay there when its process died after the checkpoint of step `cut`."""
    target = Path(request.checkpoints).with_name(folder)
    shutil.copytree(request.checkpoints, target)
    for path in target.glob("*-*"):
        if int(path.name.split("-")[1]) > cut:
            shutil.rmtree(path)
    return request.model_copy(update={"checkpoints": str(target)})


def product(request: TrainRequest) -> dict[str, bytes]:
    """The bytes of the last checkpoint and of the model."""
    root = Path(request.checkpoints)
    paths = [*(root / f"step-{TOTAL:08d}").iterdir(), *(p for m in root.glob("model-*") for p in m.iterdir())]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def timeless(steps: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        step: {name: value for name, value in metrics.items() if not name.endswith(("_s", "_per_s"))}
        for step, metrics in steps.items()
    }


@pytest.mark.parametrize("size", [1, 2])
def test_bit_equal_wherever_it_was_interrupted(lively: Recipe, make_request: Any, processes: Any, size: int) -> None:
    whole = make_request(lively, "whole")
    (first, *_) = processes.group(size, {"tasks": [["train", whole.model_dump(mode="json")]]})
    expected, metrics = product(whole), timeless(first[0]["metrics"])
    assert any(name.startswith("ema/") for name in read_state(Path(whole.checkpoints) / "step-00000008"))
    resumed = [interrupted(whole, f"cut-{cut}", cut) for cut in CUTS]
    (answers, *_) = processes.group(size, {"tasks": [["train", r.model_dump(mode="json")] for r in resumed]})
    for cut, request, answer in zip(CUTS, resumed, answers, strict=True):
        assert answer["events"][0] == [cut, "resumed"]
        assert timeless(answer["metrics"]) == {step: m for step, m in metrics.items() if int(step) > cut}
        assert answer["samples"] == {step: s for step, s in first[0]["samples"].items() if int(step) >= cut}
        assert answer["result"]["metrics"] == first[0]["result"]["metrics"]
        ours = product(request)
        assert ours.keys() == expected.keys()
        assert all(ours[name] == expected[name] for name in expected), cut


def test_the_same_samples_at_another_number_of_ranks(lively: Recipe, make_request: Any, processes: Any) -> None:
    whole = make_request(lively, "whole")
    (first,) = processes.group(1, {"tasks": [["train", whole.model_dump(mode="json")]]})
    for size in (2, 3):
        request = interrupted(whole, f"world-{size}", 3)
        ranks = processes.group(size, {"tasks": [["train", request.model_dump(mode="json")]]})
        for step in range(3, TOTAL):
            shown = [sample for rank in ranks for sample in rank[0]["samples"][str(step)]]
            assert shown == first[0]["samples"][str(step)]
        assert ranks[0][0]["events"][0] == [3, "resumed"]
        assert ranks[0][0]["result"]["step"] == TOTAL


def test_another_number_of_ranks_goes_on_to_the_same_weights_where_nothing_depends_on_ranks(
    plain: Recipe, make_request: Any, processes: Any
) -> None:
    whole = make_request(plain, "whole")
    train(whole, World(), NullSink())
    request = interrupted(whole, "wider", 3)
    processes.group(2, {"tasks": [["train", request.model_dump(mode="json")]]})
    ours, theirs = (read_state(Path(r.checkpoints) / "step-00000008") for r in (request, whole))
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) <= 1e-5


def test_a_torn_checkpoint_costs_one_interval_and_is_replaced(lively: Recipe, make_request: Any) -> None:
    whole = make_request(lively, "whole")
    train(whole, World(), NullSink())
    request = interrupted(whole, "torn", TOTAL)
    torn = Path(request.checkpoints) / f"step-{TOTAL:08d}"
    (torn / "state.json").unlink()
    (torn / ".state.json.0123abcd.tmp").write_text("{")
    one = request.model_copy(update={"compute": request.compute.model_copy(update={"keep": 1})})
    train(one, World(), NullSink())
    expected, ours = product(whole), product(one)
    assert all(data == expected[name] for name, data in ours.items())
    assert len(list(Path(one.checkpoints).glob("step-*"))) == 1
    assert not list(Path(request.checkpoints).rglob("*.tmp"))


def test_the_folder_of_another_training_is_left_alone(lively: Recipe, make_request: Any) -> None:
    request = make_request(lively, overrides={"train.duration": "1 steps"})
    train(request, World(), NullSink())
    before = product_files(request)
    with pytest.raises(RequestError, match="give another folder"):
        train(request.model_copy(update={"identity": "train-other"}), World(), NullSink())
    assert product_files(request) == before


def product_files(request: TrainRequest) -> dict[str, bytes]:
    root = Path(request.checkpoints)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_nothing_random_is_saved_because_nothing_needs_to_be(lively: Recipe, make_request: Any) -> None:
    request = make_request(lively, overrides={"train.duration": "1 steps"})
    train(request, World(), NullSink())
    progress = json.loads((Path(request.checkpoints) / "step-00000001/state.json").read_text())["progress"]
    assert set(progress) == {"step", "skipped", "bad_samples", "best_step", "best_metrics"}
