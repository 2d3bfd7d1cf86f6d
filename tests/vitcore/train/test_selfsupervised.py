"""Learning without labels, through the whole loop: how the work is spread or cut short changes nothing."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import assert_close, state
from tests.vitcore.train.test_loop import Recorder, run
from tests.vitcore.train.test_resume import TOTAL, interrupted, product, timeless
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.ingest.ingest import ingest
from vitcore.data.ingest_config import IngestConfig, SplitFractions
from vitcore.data.loading.loader import EvalLoader
from vitcore.errors import RequestError, WorkError
from vitcore.models import load_pretrained
from vitcore.models.classifier import Classifier
from vitcore.recipe import (
    AugmentConfig,
    DinoConfig,
    MaeConfig,
    MocoConfig,
    ObjectiveConfig,
    ParentConfig,
    Recipe,
    ViewConfig,
)
from vitcore.recipe import apply_overrides as override
from vitcore.sink import NullSink
from vitcore.train.learner import Learner
from vitcore.train.loop import train
from vitcore.train.overfit import bare, overfit_one_batch
from vitcore.train.request import open_dataset
from vitcore.train.validate import neighbours, validate
from vitcore.train.validate.neighbours import spans
from vitcore.world import World

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = ("moco", "dino", "mae")
CROP = AugmentConfig(crop_scale=(0.5, 1.0))
OBJECTIVES: dict[str, ObjectiveConfig] = {
    "moco": MocoConfig(width=8, hidden=32, momentum=0.9),
    "dino": DinoConfig(prototypes=32, hidden=64, bottleneck=16, momentum=0.9, freeze_head=0.2),
    "mae": MaeConfig(width=32, depth=1, heads=2, mask=0.5),
}
VIEWS = {
    "moco": (ViewConfig(augment=CROP),),
    "dino": (ViewConfig(augment=CROP), ViewConfig(count=2, image_size=16, augment=CROP)),
    "mae": (),
}


def without_labels(plain: Recipe, kind: str, metric: str = "knn", **overrides: Any) -> Recipe:
    """`plain` that learns by one of the objectives of this file."""
    tree = plain.model_dump(mode="json") | {"objective": OBJECTIVES[kind].model_dump(mode="json")}
    tree["data"]["views"] = [view.model_dump(mode="json") for view in VIEWS[kind]]
    tree["eval"]["metric"] = metric
    if kind == "moco":  # class tokens hardly differ at first: batch norms would blow rounding errors up
        tree["model"]["pooling"] = "mean"
    return override(Recipe.model_validate(tree), overrides)


@pytest.mark.parametrize("kind", ["moco", "dino"])
def test_any_number_of_ranks_equals_one(
    plain: Recipe, make_request: Any, processes: Any, spoil: Any, kind: str
) -> None:
    """Five lanes on two and three ranks, two bad samples: some slots are padding on some ranks."""
    recipe = without_labels(plain, kind, **{"train.duration": "3 steps", "data.error_budget": 0.5})
    data = spoil("train", 3, 50)
    requests = {size: make_request(recipe, f"w{size}").model_copy(update={"data": data}) for size in (1, 2, 3)}
    result, alone = run(requests[1])
    assert result.metrics["bad_samples"] == 2
    for size in (2, 3):
        ranks = processes.group(size, {"tasks": [["train", requests[size].model_dump(mode="json")]]})
        assert_close(state(requests[size], 3), state(requests[1], 3), 1e-5)
        assert all(rank[0]["result"]["metrics"] == pytest.approx(result.metrics, abs=1e-5) for rank in ranks)
        for step, metrics in alone.steps.items():
            for name in metrics.keys() - {"train/images_per_s", "train/data_wait_s", "train/data_wait_max_s"}:
                assert ranks[0][0]["metrics"][str(step)][name] == pytest.approx(metrics[name], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("microbatch", [4, 9])
def test_accumulation_equals_the_whole_batch(plain: Recipe, make_request: Any, kind: str, microbatch: int) -> None:
    recipe = without_labels(plain, kind, "last", **{"train.duration": "3 steps"})
    whole, parts = (make_request(recipe, str(most), microbatch=most) for most in (None, microbatch))
    (_, theirs), (_, ours) = run(whole), run(parts)
    assert_close(state(parts, 3), state(whole, 3), 1e-5)
    for step in theirs.steps:
        for name in ("train/loss", "train/grad_norm"):
            assert ours.steps[step][name] == pytest.approx(theirs.steps[step][name], rel=1e-5), (step, name)


@pytest.mark.parametrize("kind", KINDS)
def test_bit_equal_wherever_it_was_interrupted(plain: Recipe, make_request: Any, processes: Any, kind: str) -> None:
    """On two ranks, in micro-batches, with dropout in the network that learns."""
    recipe = without_labels(plain, kind, **{"model.dropout": 0.1, "model.drop_path": 0.2})
    whole = make_request(recipe, "whole", microbatch=8)
    (first, _) = processes.group(2, {"tasks": [["train", whole.model_dump(mode="json")]]})
    cuts = (1, 4, 7)
    resumed = [interrupted(whole, f"cut-{cut}", cut) for cut in cuts]
    (answers, _) = processes.group(2, {"tasks": [["train", each.model_dump(mode="json")] for each in resumed]})
    metrics = timeless(first[0]["metrics"])
    for cut, request, answer in zip(cuts, resumed, answers, strict=True):
        assert answer["events"][0] == [cut, "resumed"]
        assert timeless(answer["metrics"]) == {step: m for step, m in metrics.items() if int(step) > cut}
        assert product(request) == product(whole)
    names = {name.split(".")[0] for name in state(whole, TOTAL) if name.startswith("model/")}
    assert (
        names
        == {
            "moco": {"model/model", "model/query", "model/momentum_model", "model/momentum_projector"},
            "dino": {"model/model", "model/head", "model/teacher", "model/teacher_head", "model/centre_K"},
            "mae": {"model/model", "model/decoder"},
        }[kind]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns(plain: Recipe, make_request: Any, kind: str) -> None:
    changes = {"train.duration": "40 steps", "eval.every": "25%", "optim.warmup": "5 steps", "optim.lr": 5e-3}
    result, recorder = run(make_request(without_labels(plain, kind, **changes), checkpoint_every="100 steps"))
    losses = [recorder.steps[step]["train/loss"] for step in sorted(recorder.steps)]
    assert all(map(math.isfinite, losses))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert recorder.steps[40]["val/knn"] > 0.6  # a third would be chance
    assert result.metrics["knn"] == max(m["val/knn"] for m in recorder.steps.values() if "val/knn" in m)
    assert load_pretrained(result.model).card.num_classes == 0


@pytest.mark.parametrize("kind", KINDS)
def test_one_batch_is_memorised(plain: Recipe, make_request: Any, kind: str) -> None:
    recipe = without_labels(plain, kind, **{"optim.lr": 1e-2, "train.batch_size": 10})
    found = overfit_one_batch(make_request(recipe), World(), NullSink(), steps=150)
    assert found.keys() == {"steps", "loss"}
    assert all(view.augment.hflip == 0 for view in bare(recipe, 100).data.views)
    slow = override(recipe, {"optim.lr": 1e-12, "optim.min_lr": 0.0})
    with pytest.raises(WorkError, match=r"not memorised in 12 steps: loss .*, at the first step .*; check learning"):
        overfit_one_batch(make_request(slow), World(), NullSink(), steps=12)


def unlabelled(toy: Dataset, tmp_path: Path) -> Dataset:
    """The same photographs of which nobody knows the class, all to train on."""
    raw = Path(toy.url).parent / "raw" / "train"
    config = IngestConfig(shard_mb=0.05, labels="none", splits=SplitFractions(train=1, val=0, test=0))
    return Dataset.open(ingest(str(raw), str(tmp_path / "unlabelled"), config))


@pytest.mark.parametrize("kind", KINDS)
def test_photographs_without_labels_are_enough_and_the_product_can_be_fine_tuned(
    plain: Recipe, make_request: Any, toy: Dataset, tmp_path: Path, kind: str
) -> None:
    data = unlabelled(toy, tmp_path)
    assert data.manifest.fields == ("image",)
    request = make_request(without_labels(plain, kind, "last")).model_copy(update={"data": data.ref})
    result, recorder = run(request)
    assert (result.step, result.best_step, result.metrics) == (8, 8, {})
    assert not any(name.startswith("val/") for metrics in recorder.steps.values() for name in metrics)
    product = load_pretrained(result.model)
    assert (product.card.num_classes, product.card.classes, product.card.dataset) == (0, (), data.digest)
    assert isinstance(product.model, Classifier)
    assert product.model(torch.zeros(2, 3, 32, 32)).shape == (2, 32)
    wanted = "model/teacher.network." if kind == "dino" else "model/model."
    saved = state(request, 8)
    assert all(torch.equal(value, saved[wanted + name]) for name, value in product.model.state_dict().items())
    tuning = override(plain, {"train.duration": "30 steps"})
    tuning = tuning.model_copy(update={"model": ParentConfig(pooling="mean" if kind == "mae" else None)})
    tuned, _ = run(make_request(tuning, "tuned").model_copy(update={"init": result.model}))
    assert tuned.metrics["top1"] > 0.7
    card = load_pretrained(tuned.model).card
    assert card.classes == toy.manifest.classes
    assert card.model.pooling == ("token" if kind == "dino" else "mean")  # type: ignore[union-attr]


def test_neighbours_need_labels_of_the_dataset_they_are_of_alone(
    plain: Recipe, make_request: Any, toy: Dataset, tmp_path: Path
) -> None:
    data = unlabelled(toy, tmp_path)
    request = make_request(without_labels(plain, "mae")).model_copy(update={"data": data.ref})
    with pytest.raises(RequestError, match="has no label"):
        train(request, World(), Recorder())
    mixed = without_labels(plain, "mae", **{"data.mixture": (1, 3), "train.duration": "2 steps"})
    result, _ = run(make_request(mixed).model_copy(update={"mixture": (data.ref,)}))
    assert result.metrics["knn"] > 0.4
    with pytest.raises(RequestError, match="has no label"):
        run(make_request(override(plain, {"data.mixture": (1, 3)})).model_copy(update={"mixture": (data.ref,)}))


def test_the_vote_is_that_of_a_bank_spread_over_the_training_split(
    plain: Recipe, make_request: Any, spoil: Any, monkeypatch: pytest.MonkeyPatch, processes: Any
) -> None:
    """Against features and votes computed sample by sample, with bad samples in both splits."""
    data = spoil("train", 0, 2)
    request = make_request(without_labels(plain, "dino")).model_copy(update={"data": data})
    learner = Learner(request, open_dataset(request.recipe, data), World())
    monkeypatch.setattr(neighbours, "BANK", 30)
    monkeypatch.setattr(neighbours, "STRETCHES", 3)
    found = validate(learner)
    assert learner.objective.training
    assert found["bad_samples"] == 2
    bank = [row for start in (0, 30, 61) for row in range(start, start + 10) if row not in (0, 2)]
    features: dict[str, dict[int, torch.Tensor]] = {}
    for split in ("train", "val"):
        with EvalLoader(learner.dataset, split, image_size=32, batch_size=1) as loader, torch.no_grad():
            features[split] = {
                int(batch.samples_S): torch.nn.functional.normalize(
                    learner.objective.eval().predict(batch.images_SCHW.float() / 255)
                )[0]
                for batch in loader
                if batch.weights_S > 0
            }
    known, asked = learner.dataset.index("train").labels, learner.dataset.index("val").labels
    hits = 0
    for row, feature in features["val"].items():
        nearest = sorted(((float(feature @ features["train"][voter]), voter) for voter in bank), reverse=True)[:20]
        votes = [sum(math.exp(s / 0.07) for s, voter in nearest if known[voter] == k) for k in range(3)]
        hits += votes.index(max(votes)) == asked[row]
    assert found["knn"] == pytest.approx(hits / len(features["val"]))


def test_a_bank_is_all_of_a_small_split_and_even_runs_of_a_large_one() -> None:
    assert spans(92, 10_000, 20) == [(0, 92)]
    runs = spans(1_281_167, 10_000, 20)
    assert len(runs) == 20
    assert {stop - start for start, stop in runs} == {500}
    assert runs[1][0] == 64058
    assert all(before[1] <= after[0] for before, after in pairwise(runs))
    assert spans(101, 100, 20)[-1] == (95, 100)
