"""The contrastive losses: open_clip's values, whatever the number of ranks, with nobody's padding in them."""

from __future__ import annotations

from typing import Any

import open_clip.loss
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vitcore.data.loading.batch import Inputs
from vitcore.models import build
from vitcore.models.clip import Clip
from vitcore.objectives import build as build_objective
from vitcore.objectives.contrast import Contrast, Pairs, contrast
from vitcore.recipe import ClipConfig, ContrastConfig, TextConfig, VitConfig
from vitcore.world import World

LOSSES = ["softmax", "sigmoid"]


def rows(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    image, text = F.normalize(torch.randn(2, count, 8), dim=2)
    return image.requires_grad_(), text.requires_grad_()


def make(objective: ContrastConfig | None = None, bias: float | None = None, dropout: float = 0.0) -> Contrast:
    torch.manual_seed(0)
    image = VitConfig(patch=8, width=32, depth=2, heads=2, dropout=dropout)
    config = ClipConfig(width=16, image=image, text=TextConfig(context=16, width=32, depth=2, heads=2), bias=bias)
    model = build(config, num_classes=0, image_size=16)
    built = build_objective(objective or ContrastConfig(), model, teacher=None, class_counts=[], world=World())
    assert isinstance(built, Contrast) and isinstance(built.model, Clip)
    return built


def batch(*captions: str) -> Inputs:
    count = len(captions)
    torch.manual_seed(3)
    labels, weights = torch.zeros(count, dtype=torch.int64), torch.ones(count)
    return Inputs(torch.rand(count, 3, 16, 16), labels, labels, weights, weights, captions=captions)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_open_clips(loss: str) -> None:
    ours, theirs = rows(9), rows(9)
    scale, bias = torch.tensor(7.0), torch.tensor(-2.0)
    loss_S, _ = contrast(loss, Pairs(*ours, torch.ones(9)), (scale, bias), World())
    loss_S.mean().backward()
    expected = open_clip.loss.ClipLoss() if loss == "softmax" else open_clip.loss.SigLipLoss()
    value = expected(*theirs, scale, bias)
    value.backward()
    torch.testing.assert_close(loss_S.mean(), value, rtol=0, atol=1e-6)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our.grad, their.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_of_weight_0_are_neither_anchors_nor_negatives(loss: str) -> None:
    kept = torch.tensor([True, False, True, True, False, True])
    (image, text), shared = rows(6), (torch.tensor(7.0), torch.tensor(-2.0))
    loss_S, hit_S = contrast(loss, Pairs(image, text, kept.float()), shared, World())
    few_S, few_hit_S = contrast(loss, Pairs(image[kept], text[kept], torch.ones(4)), shared, World())
    torch.testing.assert_close(loss_S[kept], few_S, rtol=0, atol=1e-6)
    assert torch.equal(hit_S[kept], few_hit_S)
    (loss_S * kept).sum().backward()
    for row in (image, text):
        assert row.grad is not None and row.grad.isfinite().all()
        assert (row.grad[~kept] == 0).all() and (row.grad[kept] != 0).any()


def test_any_number_of_ranks_gives_the_values_and_gradients_of_one(processes: Any) -> None:
    ((alone,),) = processes.group(1, {"tasks": [["contrast", None]]})
    for size in (2, 3):
        for (rank,) in processes.group(size, {"tasks": [["contrast", None]]}):
            for loss in LOSSES:
                ours, theirs = rank[loss], alone[loss]
                assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
                assert ours["shared"] == pytest.approx(theirs["shared"], abs=1e-5)
                assert (ours["hits"], ours["padding"]) == (theirs["hits"], [0, 0])
                for our, their in zip(ours["rows"], theirs["rows"], strict=True):
                    whole = torch.tensor([row for part in our for row in part])
                    torch.testing.assert_close(whole, torch.tensor(their[0]), rtol=0, atol=1e-5)
                    assert whole.abs().max() > 0.01


def test_a_caption_that_occurs_twice_is_right_for_both() -> None:
    _, text = rows(4)
    text = text.detach().clone()
    text[2] = text[1]
    _, hit_S = contrast("softmax", Pairs(text, text, torch.ones(4)), (torch.tensor(10.0),), World())
    assert hit_S.tolist() == [1, 1, 1, 1]
    _, hit_S = contrast("softmax", Pairs(text.roll(1, 0), text, torch.ones(4)), (torch.tensor(10.0),), World())
    assert hit_S.tolist() == [0, 0, 1, 0]


def test_terms_are_sums_over_the_slots_that_have_a_caption() -> None:
    objective = make(bias=-3.0)
    embeddings = objective(batch("a dog", "", "a cat", "two birds"))
    terms = objective.couple(embeddings, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    alone = objective.couple(objective(batch("a dog", "x", "a cat", "y")), torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert terms.weight == alone.weight == 2
    torch.testing.assert_close(terms.loss, alone.loss, rtol=0, atol=1e-6)
    assert terms.metrics["scale"].item() == pytest.approx(2 / 0.07, rel=1e-5)
    assert set(terms.metrics) == {"top1", "scale"}
    assert not any(metric.requires_grad for metric in terms.metrics.values())
    terms.loss.backward()
    assert objective.model.get_parameter("logit_bias").grad is not None
    assert len(objective.state_dict()) == len(objective.model.state_dict())


def test_the_temperature_has_a_bound() -> None:
    objective = make(ContrastConfig(max_scale=20))
    scale = objective.model.get_parameter("logit_scale")
    objective.after_step(1, 10)
    assert scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-5)
    with torch.no_grad():
        scale.fill_(9.0)
    objective.after_step(2, 10)
    assert scale.exp().item() == pytest.approx(20, rel=1e-5)


def test_a_locked_tower_stays_in_evaluation_mode_and_out_of_the_graph() -> None:
    objective = make(ContrastConfig(lock_image=True), dropout=0.5).train()
    assert objective.training and not objective.model.get_submodule("image.blocks.0").training
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        embeddings = objective(batch("a dog", "a cat"))
    patches = 5  # tokens of an image of 16 pixels: none of the tower's activations is kept
    assert not any(tensor.ndim == 3 and tensor.shape[1] == patches for tensor in kept)
    objective.couple(embeddings, torch.ones(2)).loss.backward()
    for name, parameter in objective.model.named_parameters():
        assert (parameter.grad is None) == name.startswith("image."), name
    assert not objective.eval().training and objective.train().model.get_submodule("text").training


def test_compiled_towers_say_the_same_of_any_caption() -> None:
    plain, compiled = make().eval(), make().eval()
    compiled.compile(backend="eager")
    for captions in (("a dog", "a cat"), ("a dog that runs over a long brown field of grass", "x"), ("one", "two")):
        ours, theirs = compiled(batch(*captions)), plain(batch(*captions))
        for our, their in zip(ours.rows, theirs.rows, strict=True):
            torch.testing.assert_close(our, their, rtol=0, atol=1e-6)
