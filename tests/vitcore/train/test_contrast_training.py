"""Images and captions through the whole loop: they are learnt, and how the work is spread changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.checkpoints import assert_close, state
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.loading.batch import to_inputs
from vitcore.data.loading.loader import EvalLoader, TrainLoader
from vitcore.errors import RequestError
from vitcore.measures.retrieval import ranks, recall
from vitcore.models import load_pretrained, save_pretrained
from vitcore.models.clip import Clip
from vitcore.objectives import Embeddings
from vitcore.objectives.contrast import Contrast
from vitcore.recipe import ClassifyConfig, CnnConfig, ParentConfig, Recipe, VitConfig, apply_overrides
from vitcore.sink import NullSink
from vitcore.train import loop
from vitcore.train.accumulate import accumulate
from vitcore.train.learner import Learner
from vitcore.train.overfit import overfit_one_batch
from vitcore.train.request import TrainRequest, TrainResult, open_dataset
from vitcore.train.validate import retrieval, validate
from vitcore.world import World

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def ask(make_request: Any, captioned: Dataset) -> Any:
    """`make_request`, of `captioned`."""

    def make(recipe: Recipe, *arguments: Any, **options: Any) -> TrainRequest:
        options = {"checkpoint_every": "1000 steps"} | options
        return make_request(recipe, *arguments, **options).model_copy(update={"data": captioned.ref})

    return make


class Recorder(NullSink):
    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}

    def log(self, step: int, metrics: Any) -> None:
        self.steps[step] = dict(metrics)


def run(request: TrainRequest) -> tuple[TrainResult, Recorder]:
    recorder = Recorder()
    return loop.train(request, World(), recorder), recorder


def learner_of(request: TrainRequest) -> Learner:
    return Learner(request, open_dataset(request.recipe, request.data), World())


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_captions_are_learnt(pairs: Recipe, ask: Any, loss: str) -> None:
    overrides: dict[str, Any] = {
        "objective.loss": loss,
        "train.duration": "40 steps",
        "train.batch_size": 50,
        "eval.every": "50%",
        "optim.lr": 2e-3,
    }
    if loss == "sigmoid":
        overrides["model.bias"] = -10.0
    result, recorder = run(ask(pairs, "run", overrides))
    assert result.metrics["image_to_text_recall_at_5"] > 0.9
    assert result.metrics["text_to_image_recall_at_5"] > 0.9
    assert result.metrics["recall_at_10"] > 0.95
    assert recorder.steps[40]["train/top1"] > 0.5 > 5 * recorder.steps[1]["train/top1"]


def test_any_number_of_ranks_equals_one(pairs: Recipe, ask: Any, processes: Any) -> None:
    """5 lanes over 2 and 3 ranks: some have slots of weight 0."""
    kinds: dict[str, dict[str, Any]] = {
        "softmax": {},
        "sigmoid": {"objective.loss": "sigmoid", "model.bias": -10.0, "train.ema_decay": 0.9},
    }
    short = {"train.duration": "3 steps", "eval.every": "3 steps", "eval.metric": "loss"}
    requests = {
        size: [ask(pairs, f"{kind}{size}", overrides | short) for kind, overrides in kinds.items()]
        for size in (1, 2, 3)
    }
    alone = [run(request) for request in requests[1]]
    for size in (2, 3):
        tasks = [["train", request.model_dump(mode="json")] for request in requests[size]]
        for answers in processes.group(size, {"tasks": tasks}):
            for answer, (result, _) in zip(answers, alone, strict=True):
                assert answer["result"]["metrics"] == pytest.approx(result.metrics, abs=1e-5)
        for ours, theirs in zip(requests[size], requests[1], strict=True):
            assert_close(state(ours, 3), state(theirs, 3), 1e-5)
            assert len(state(ours, 3)) > 100


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_gradient_caching_equals_one_pass(pairs: Recipe, ask: Any, loss: str) -> None:
    overrides = {"objective.loss": loss, "model.bias": -5.0, "train.duration": "2 steps", "eval.every": "2 steps"}
    whole, parts = (ask(pairs, str(most), overrides, microbatch=most) for most in (None, 8))
    (_, theirs), (_, ours) = run(whole), run(parts)
    assert_close(state(parts, 2), state(whole, 2), 1e-5)
    for name in ("train/loss", "train/top1", "train/scale", "train/grad_norm"):
        # Relative to its size as well: at a norm of 33, fp32's own steps are a third of 1e-5.
        assert ours.steps[2][name] == pytest.approx(theirs.steps[2][name], rel=1e-5, abs=1e-5), name


def test_gradient_caching_drops_out_the_same_in_both_passes(pairs: Recipe, ask: Any) -> None:
    request = ask(pairs, overrides={"model.image.dropout": 0.3}, microbatch=8)
    learner = learner_of(request)
    objective, device = learner.objective, torch.device("cpu")
    assert isinstance(objective, Contrast)
    with TrainLoader(learner.dataset, request.recipe.data, batch_size=20, seed=0, stop_step=1, threads=0) as loader:
        batch = next(loader)
    torch.manual_seed(11)
    accumulate(learner, batch)
    cached = {name: parameter.grad.clone() for name, parameter in objective.named_parameters()}
    objective.zero_grad()
    torch.manual_seed(11)
    micros = list(batch.micro(8))
    passes = []
    for micro, seed in zip(micros, torch.randint(2**62, (len(micros),)).tolist(), strict=True):
        torch.manual_seed(seed)
        passes.append(objective(to_inputs(micro, device)))
    rows = tuple(torch.cat(parts) for parts in zip(*(part.rows for part in passes), strict=True))
    objective.couple(Embeddings(rows, passes[0].shared), batch.weights_S).loss.backward()
    assert len(micros) == 3
    for name, parameter in objective.named_parameters():
        torch.testing.assert_close(cached[name], parameter.grad, rtol=1e-5, atol=1e-5)


def parent_of(ask: Any, recipe: Recipe, folder: Path, seed: int = 8) -> str:
    """A model that was never trained but has no parameter at its initial value."""
    learner = learner_of(ask(recipe, "unused", {"train.seed": seed}))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in learner.objective.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    save_pretrained(folder, learner.objective.model, learner.card())
    return str(folder)


def classifying(pairs: Recipe, model: Any) -> Recipe:
    metric = pairs.eval.model_copy(update={"metric": "top1"})
    return pairs.model_copy(update={"model": model, "objective": ClassifyConfig(), "eval": metric})


@pytest.mark.parametrize(
    ("tower", "projected"),
    [
        (VitConfig(patch=8, width=32, depth=2, heads=2, dropout=0.3), False),
        (CnnConfig(name="shufflenet_v2_x0_5"), True),
    ],
)
def test_a_locked_image_tower_keeps_its_weights(
    pairs: Recipe, ask: Any, tmp_path: Path, processes: Any, tower: Any, projected: bool
) -> None:
    init = parent_of(ask, classifying(pairs, tower), tmp_path / "parent")
    overrides = {
        "objective.lock_image": True,
        "model.image_projection": projected,
        "train.duration": "3 steps",
        "eval.every": "3 steps",
        "optim.weight_decay": 0.5,
    }
    requests = [
        ask(pairs, f"{size}-{most}", overrides, microbatch=most).model_copy(update={"init": init})
        for size, most in ((1, None), (1, 8), (2, None))
    ]
    results = [run(request)[0] for request in requests[:2]]
    (answers, _) = processes.group(2, {"tasks": [["train", requests[2].model_dump(mode="json")]]})
    for other in requests[1:]:
        assert_close(state(other, 3), state(requests[0], 3), 1e-5)
    before = load_pretrained(init).model.state_dict()
    for url in (results[0].model, answers[0]["result"]["model"]):
        trained = load_pretrained(url).model
        assert isinstance(trained, Clip) and trained.config.image == load_pretrained(init).card.model
        for name, tensor in trained.image.state_dict().items():
            assert torch.equal(tensor, before[name]), name
    fresh = learner_of(requests[0]).objective.model.state_dict()
    assert not torch.equal(trained.state_dict()["text.projection.weight"], fresh["text.projection.weight"])


def test_towers_are_carried_over(pairs: Recipe, ask: Any, tmp_path: Path) -> None:
    tower = VitConfig(patch=8, width=32, depth=3, heads=4)
    backbone = parent_of(ask, classifying(pairs, tower), tmp_path / "backbone")
    whole = parent_of(ask, pairs, tmp_path / "whole")

    def made(recipe: Recipe, init: str) -> Any:
        return learner_of(ask(recipe).model_copy(update={"init": init})).objective.model

    given, clip = load_pretrained(backbone).model, made(pairs, backbone)
    assert clip.config == pairs.model.model_copy(update={"image": tower})
    assert all(torch.equal(tensor, given.state_dict()[name]) for name, tensor in clip.image.state_dict().items())
    given, clip = load_pretrained(whole).model, made(pairs, whole)
    assert all(torch.equal(tensor, given.state_dict()[name]) for name, tensor in clip.state_dict().items())
    larger = made(apply_overrides(pairs, {"data.image_size": 48}), whole)
    assert larger.image_size == 48 and larger.image.state_dict()["pos_embed"].shape[1] == 1 + 36
    continued = made(classifying(pairs, ParentConfig(drop_path=0.1)), whole)
    state_of = {name.removeprefix("image."): tensor for name, tensor in given.state_dict().items()}
    assert continued.num_classes == 5 and continued.config.drop_path == 0.1
    for name, tensor in continued.state_dict().items():
        assert torch.equal(tensor, torch.zeros_like(tensor) if name.startswith("head") else state_of[name]), name
    assert made(classifying(pairs, pairs.model.image), whole).num_classes == 5


def test_parents_that_do_not_fit(pairs: Recipe, ask: Any, tmp_path: Path) -> None:
    tower = VitConfig(patch=8, width=48, depth=1, heads=4)
    backbone = parent_of(ask, classifying(pairs, tower), tmp_path / "backbone")
    whole = parent_of(ask, pairs, tmp_path / "whole")
    cases = [
        (pairs.model_copy(update={"model": ParentConfig()}), backbone, "says what the text tower is"),
        (apply_overrides(pairs, {"model.image_projection": False}), backbone, "48 channels but the shared space 32"),
        (classifying(pairs, CnnConfig()), whole, "trains a cnn, but .*whole is a vit"),
        (apply_overrides(pairs, {"objective.lock_image": True}), None, "name it with --model"),
    ]
    for recipe, init, said in cases:
        with pytest.raises(RequestError, match=said):
            learner_of(ask(recipe).model_copy(update={"init": init}))


def test_validation_searches_the_first_images_only(
    pairs: Recipe, ask: Any, processes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if written out: all captions of the first 12 photographs, embedded one batch at a time."""
    monkeypatch.setattr(retrieval, "MOST_IMAGES", 12)
    learner = learner_of(ask(pairs, overrides={"eval.batch_size": 5}))
    objective, clip = learner.objective, learner.objective.product
    assert isinstance(objective, Contrast) and isinstance(clip, Clip)
    metrics = validate(learner)
    index, images, texts, owners = learner.dataset.index("val"), [], [], []
    with EvalLoader(learner.dataset, "val", image_size=32, batch_size=4, stop=12) as loader, torch.no_grad():
        images = [objective.predict(to_inputs(batch, torch.device("cpu")).images_SCHW) for batch in loader]
        for row in range(12):
            texts.append(clip.embed_texts(objective.tokenize(index.captions(row))))
            owners += [row] * len(texts[-1])
    image_NE, text_TE, owner_T = torch.cat(images), torch.cat(texts), torch.tensor(owners)
    assert len(image_NE) == 12 and len(text_TE) == 24
    found = ranks(image_NE, text_TE, owner_T)
    for k in (1, 5, 10):
        assert metrics[f"image_to_text_recall_at_{k}"] == recall(found.texts_N, k)
        assert metrics[f"text_to_image_recall_at_{k}"] == recall(found.images_T, k)
    assert metrics["recall_at_10"] == (recall(found.texts_N, 10) + recall(found.images_T, 10)) / 2
    losses = []
    for part in (slice(0, 5), slice(5, 10), slice(10, 12)):
        scores = clip.logit_scale.exp() * image_NE[part] @ text_TE[::2][part].T
        own = torch.arange(len(scores))
        losses += [(F.cross_entropy(each, own, reduction="sum") / 2).item() for each in (scores, scores.T)]
    assert metrics["loss"] == pytest.approx(sum(losses) / 12, abs=1e-5)


def test_one_batch_is_memorised(pairs: Recipe, ask: Any) -> None:
    said = overfit_one_batch(ask(pairs, overrides={"optim.lr": 3e-3}), World(), NullSink(), steps=120)
    assert said["top1"] >= 0.99
