"""The loop: it learns, and how the work is spread changes nothing."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.checkpoints import assert_close, state
from vitcore.data.loading.batch import Batch, Inputs, to_inputs
from vitcore.errors import RequestError, WorkError
from vitcore.models import load_pretrained, save_pretrained
from vitcore.recipe import CnnConfig, DeitConfig, DistillConfig, Recipe, VitConfig, apply_overrides
from vitcore.sink import NullSink
from vitcore.train import accumulate, loop
from vitcore.train.learner import Learner, Plan
from vitcore.train.loop import MOST_SKIPS_IN_A_ROW, optimise, train
from vitcore.train.overfit import bare, overfit_one_batch
from vitcore.train.request import TrainRequest, TrainResult, open_dataset
from vitcore.train.validate import better, validate
from vitcore.world import World

pytestmark = pytest.mark.usefixtures("one_thread")


class Recorder(NullSink):
    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}
        self.events: list[tuple[int, str]] = []

    def log(self, step: int, metrics: Any) -> None:
        assert step not in self.steps
        self.steps[step] = dict(metrics)

    def event(self, step: int, kind: str, detail: str) -> None:
        self.events.append((step, kind))


def run(request: TrainRequest) -> tuple[TrainResult, Recorder]:
    recorder = Recorder()
    return train(request, World(), recorder), recorder


def test_a_separable_set_is_learnt(plain: Recipe, make_request: Any) -> None:
    request = make_request(plain, overrides={"train.duration": "60 steps", "train.ema_decay": 0.8, "eval.every": "25%"})
    result, recorder = run(request)
    assert result.step == 60
    assert result.metrics["top1"] > 0.9
    assert sorted(recorder.steps) == list(range(1, 61))
    assert recorder.steps[60]["train/loss"] < 0.5 * recorder.steps[1]["train/loss"]
    validated = {step: m["val/top1"] for step, m in recorder.steps.items() if "val/top1" in m}
    assert sorted(validated) == [15, 30, 45, 60]
    assert result.metrics["top1"] == max(validated.values())
    assert result.best_step == min(step for step, top1 in validated.items() if top1 == result.metrics["top1"])
    card = load_pretrained(result.model)
    assert card.card.classes == ("b", "g", "r")
    assert card.card.recipe == request.recipe
    assert sorted(path.name for path in Path(request.checkpoints).glob("model-*")) == sorted(
        {f"model-{step:08d}" for step, kind in recorder.events if kind == "best"}
    )


def test_the_published_model_is_the_average_that_was_validated(plain: Recipe, make_request: Any) -> None:
    request = make_request(plain, overrides={"train.ema_decay": 0.5, "eval.metric": "loss"})
    result, _ = run(request)
    weights, saved = load_pretrained(result.model).model.state_dict(), state(request, result.best_step)
    assert any(not torch.equal(saved[f"model/model.{name}"], saved[f"ema/{name}"]) for name in weights)
    for name, tensor in weights.items():
        assert torch.equal(tensor, saved[f"ema/{name}"])
    again = make_request(plain, "again", {"eval.metric": "loss"}).model_copy(update={"init": result.model})
    metrics = validate(Learner(again, open_dataset(again.recipe, again.data), World()))
    assert metrics == pytest.approx(result.metrics, abs=1e-6)


@pytest.mark.parametrize("microbatch", [1, 4, 9, 1000])
def test_accumulation_equals_the_whole_batch(plain: Recipe, make_request: Any, microbatch: int) -> None:
    overrides = {"data.augment.mixup": 0.8, "train.duration": "3 steps"}
    whole, parts = (make_request(plain, str(most), overrides, microbatch=most) for most in (None, microbatch))
    (_, ours), (_, theirs) = run(parts), run(whole)
    assert_close(state(parts, 3), state(whole, 3), 1e-6)
    for step in theirs.steps:
        for name in ("train/loss", "train/top1", "train/grad_norm", "val/loss"):
            if name in theirs.steps[step]:
                assert ours.steps[step][name] == pytest.approx(theirs.steps[step][name], abs=1e-5), (step, name)


@pytest.mark.parametrize("objective", ["classify", "distill"])
def test_any_number_of_ranks_equals_one(
    plain: Recipe, make_request: Any, processes: Any, spoil: Any, tmp_path: Path, objective: str
) -> None:
    overrides: dict[str, Any] = {
        "data.augment.mixup": 0.8,
        "data.augment.randaug_layers": 1,
        "data.error_budget": 0.5,
        "train.ema_decay": 0.9,
    }
    data, teacher = spoil("train", 3, 50), None
    if objective == "distill":
        teacher = str(tmp_path / "teacher")
        learner = Learner(make_request(plain), open_dataset(plain, data), World())
        save_pretrained(Path(teacher), learner.objective.model, learner.card())
        deit = DeitConfig(**plain.model.model_dump(exclude={"kind", "pooling"}))
        plain = plain.model_copy(update={"objective": DistillConfig(mode="soft"), "model": deit})
    requests = {
        size: make_request(plain, f"w{size}", overrides).model_copy(update={"data": data, "teacher": teacher})
        for size in (1, 2, 3)
    }
    result, alone = run(requests[1])
    for size in (2, 3):
        job = {"tasks": [["train", requests[size].model_dump(mode="json")]]}
        ranks = [answers[0] for answers in processes.group(size, job)]
        assert_close(state(requests[size], 8), state(requests[1], 8), 1e-5)
        assert [rank["result"] for rank in ranks] == [ranks[0]["result"]] * size
        assert all(rank["metrics"] == {} and rank["events"] == [] for rank in ranks[1:])
        assert ranks[0]["result"]["metrics"] == pytest.approx(result.metrics, abs=1e-5)
        assert ranks[0]["result"]["best_step"] == result.best_step
        for step, metrics in alone.steps.items():
            theirs = ranks[0]["metrics"][str(step)]
            assert theirs.keys() == metrics.keys()
            for name in metrics.keys() - {"train/images_per_s", "train/data_wait_s", "train/data_wait_max_s"}:
                assert theirs[name] == pytest.approx(metrics[name], rel=1e-4, abs=1e-5), (step, name)


def test_validation_takes_the_running_statistics_that_are_kept(
    plain: Recipe, make_request: Any, processes: Any
) -> None:
    cnn = plain.model_copy(update={"model": CnnConfig(name="shufflenet_v2_x0_5", dropout=0)})
    request = make_request(cnn)
    (alone,) = processes.group(1, {"tasks": [["validate", request.model_dump(mode="json")]]})
    expected = alone[0]["metrics"]
    ranks = processes.group(2, {"tasks": [["validate", request.model_dump(mode="json")]]})
    for rank in ranks:
        assert rank[0]["metrics"] == pytest.approx(expected, rel=1e-5)


class Poison:
    """Makes the pixels of some steps not a number, on their way into the network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
        self.steps = steps
        monkeypatch.setattr(accumulate, "to_inputs", self)

    def __call__(self, batch: Batch, device: torch.device) -> Inputs:
        inputs = to_inputs(batch, device)
        pixels = inputs.images_SCHW
        return dataclasses.replace(inputs, images_SCHW=pixels * math.nan) if batch.step + 1 in self.steps else inputs


def test_a_step_that_is_not_finite_is_dropped_and_counted(
    plain: Recipe, make_request: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Poison(monkeypatch, 3, 5)
    request = make_request(plain, overrides={"train.ema_decay": 0.9})
    result, recorder = run(request)
    assert result.skipped == (3, 5)
    assert [step for step, kind in recorder.events if kind == "skipped"] == [3, 5]
    assert math.isnan(recorder.steps[3]["train/loss"])
    before, after = state(request, 2), state(request, 3)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(tensor.isfinite().all() for tensor in state(request, 8).values())


def test_ten_in_a_row_are_too_many_even_over_a_resume(
    plain: Recipe, make_request: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MOST_SKIPS_IN_A_ROW == 10
    Poison(monkeypatch, 2, *range(4, 99))
    request = make_request(plain, overrides={"train.duration": "30 steps", "eval.every": "7 steps"})
    recorder = Recorder()
    with pytest.raises(WorkError, match=r"10 steps up to step 13; lower optim\.lr"):
        train(request, World(), recorder)
    assert [step for step, kind in recorder.events if kind == "skipped"] == [2, *range(4, 14)]
    recorder = Recorder()
    with pytest.raises(WorkError, match="up to step 13"):
        train(request, World(), recorder)
    assert recorder.events == [(12, "resumed"), (13, "skipped")]


def test_nine_in_a_row_are_not(plain: Recipe, make_request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Poison(monkeypatch, *range(2, 11), 12)
    result, _ = run(make_request(plain, overrides={"train.duration": "13 steps"}))
    assert len(result.skipped) == 10


def test_the_error_budget(plain: Recipe, make_request: Any, spoil: Any) -> None:
    """8 of 92 samples are bad, 8.7 %."""
    data = spoil("train", *range(0, 80, 10))
    for budget, wanted in ((0.0, "data.error_budget 0"), (0.001, "data.error_budget 0.001"), (0.1, None)):
        overrides = {"data.error_budget": budget, "train.duration": "14 steps"}
        request = make_request(plain, str(budget), overrides).model_copy(update={"data": data})
        if wanted is None:
            run(request)
            progress = json.loads((Path(request.checkpoints) / "step-00000014" / "state.json").read_text())["progress"]
            assert 16 <= progress["bad_samples"] <= 32
        else:
            with pytest.raises(WorkError, match=rf"could not be read, more than {wanted} allows; run `vit check"):
                run(request)


def test_a_bad_sample_in_the_first_batch_is_chance_and_no_reason_to_stop(
    plain: Recipe, make_request: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make_request(plain, overrides={"data.error_budget": 0.05})
    learner = Learner(request, open_dataset(request.recipe, request.data), World())
    learner.progress.step = 1
    update = loop.Update({}, False, 3, False)  # of 20, where 1 is expected
    loop._account(learner, update, NullSink())
    with pytest.raises(WorkError, match="6 of 20"):
        loop._account(learner, update, NullSink())


def test_a_step_is_reported_before_the_checkpoint_that_ends_it(
    plain: Recipe, make_request: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the two must not leave a step that no attempt reports."""
    said: list[str] = []
    real = loop.Saver.save
    monkeypatch.setattr(loop.Saver, "save", lambda *given: (said.append("save"), real(*given)))

    class Order(NullSink):
        def log(self, step: int, metrics: Any) -> None:
            said.append("log")

    train(make_request(plain, overrides={"train.duration": "3 steps"}), World(), Order())
    assert said == ["log", "save"] * 3


def test_the_best_model_survives_later_worse_ones(
    plain: Recipe, make_request: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.2, 0.9, 0.9, 0.4, 0.1])
    monkeypatch.setattr(loop, "validate", lambda learner: {"top1": (s := next(scores)), "loss": -s})
    request = make_request(plain, overrides={"train.duration": "10 steps", "eval.every": "2 steps"}, keep=1)
    result, recorder = run(request)
    assert (result.best_step, result.metrics["top1"]) == (4, 0.9)
    assert [step for step, kind in recorder.events if kind == "best"] == [2, 4]
    names = sorted(path.name for path in Path(request.checkpoints).iterdir())
    assert names == ["attempt.json", "model-00000004", "step-00000010"]
    assert load_pretrained(result.model).card.dataset == request.data.digest


def test_bad_samples_of_the_validation_are_counted(plain: Recipe, make_request: Any, spoil: Any) -> None:
    request = make_request(plain).model_copy(update={"data": spoil("val", 3, 11)})
    metrics = validate(Learner(request, open_dataset(request.recipe, request.data), World()))
    assert metrics["bad_samples"] == 2


def test_what_is_better() -> None:
    assert better("top1", {"top1": 0.1}, {})
    assert better("top1", {"top1": 0.2}, {"top1": 0.1})
    assert not better("top1", {"top1": 0.1}, {"top1": 0.1})
    assert better("loss", {"loss": 0.1}, {"loss": 0.2})
    assert not better("loss", {"loss": math.nan}, {"loss": 0.2})
    assert better("loss", {"loss": 9.0}, {"loss": math.nan})


def test_a_finished_training_is_only_looked_up(plain: Recipe, make_request: Any) -> None:
    request = make_request(plain)
    first, _ = run(request)
    files = {path: path.stat().st_mtime_ns for path in Path(request.checkpoints).rglob("*")}
    again, recorder = run(request)
    assert again == first
    assert recorder.steps == {}
    assert {path: path.stat().st_mtime_ns for path in Path(request.checkpoints).rglob("*")} == files


def test_checkpoints_are_due_by_steps_or_minutes(
    plain: Recipe, make_request: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = {"train.duration": "7 steps", "eval.every": "100%"}
    _, recorder = run(make_request(plain, "steps", overrides, checkpoint_every="3 steps"))
    assert [step for step, kind in recorder.events if kind == "checkpoint"] == [3, 6, 7]
    _, recorder = run(make_request(plain, "minutes", overrides, checkpoint_every="5 min"))
    assert [step for step, kind in recorder.events if kind == "checkpoint"] == [7]
    now = [50.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    clock, due = loop._Clock("5 min"), []
    for now[0] in (60, 349, 351, 360, 650, 652):
        due.append(clock(1))
    assert due == [False, False, True, False, False, True]


def test_plan(plain: Recipe) -> None:
    assert Plan.of(plain, 92) == Plan(8, 2, 4, 4.6)
    longer = apply_overrides(plain, {"train.duration": "3 epochs", "optim.warmup": "50%", "eval.every": "1 epochs"})
    assert Plan.of(longer, 92) == Plan(14, 7, 5, 4.6)
    with pytest.raises(RequestError, match="less than one step"):
        Plan.of(apply_overrides(plain, {"train.duration": "0 steps"}), 92)


def test_one_batch_is_memorised(lively: Recipe, make_request: Any) -> None:
    request = make_request(lively)
    found = overfit_one_batch(request, World(), NullSink(), steps=120)
    assert found["top1"] >= 0.99
    assert found["steps"] <= 120
    assert not Path(request.checkpoints).exists()


def test_what_cannot_learn_does_not_memorise(lively: Recipe, make_request: Any) -> None:
    request = make_request(lively, overrides={"optim.lr": 1e-12, "optim.min_lr": 0.0})
    with pytest.raises(WorkError, match=r"one batch of 20 was not memorised in 12 steps.*check labels, learning"):
        overfit_one_batch(request, World(), NullSink(), steps=12)


def test_the_bare_recipe_keeps_what_it_must(lively: Recipe) -> None:
    stripped = bare(lively, 100)
    assert isinstance(stripped.model, VitConfig)
    assert stripped.model.dropout == stripped.model.drop_path == 0
    augment = stripped.data.augment
    assert (augment.mixup, augment.cutmix, augment.randaug_layers, augment.erasing, augment.hflip) == (0, 0, 0, 0, 0)
    assert stripped.optim.lr == lively.optim.lr
    assert stripped.train.batch_size == lively.train.batch_size


def test_dropout_differs_from_step_to_step_and_rank_to_rank() -> None:
    seeds = {loop._seed(seed, step, rank) for seed in range(5) for step in range(20) for rank in range(4)}
    assert len(seeds) == 400


def test_a_step_leaves_no_gradient_behind(plain: Recipe, make_request: Any) -> None:
    request = make_request(plain)
    learner = Learner(request, open_dataset(request.recipe, request.data), World())
    batch = Batch(
        0, torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4).long(), torch.ones(4), torch.arange(4), 4
    )
    optimise(learner, batch)
    assert all(parameter.grad is None for parameter in learner.objective.parameters())
