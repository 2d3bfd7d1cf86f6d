"""DINO (2104.14294) against its algorithm 1 with multi-crop, written down plainly."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.vitcore.objectives.selfsupervised import (
    SLOTS,
    WEIGHTS,
    assert_same,
    gradients,
    spoil_weightless,
    stir,
    views,
    vit,
)
from vitcore.data.loading.batch import Inputs
from vitcore.objectives.dino import Dino
from vitcore.recipe import DinoConfig
from vitcore.world import World

COUNTED = [slot for slot, weight in enumerate(WEIGHTS) if weight]
CROPS = (32, 32, 16, 16, 24)
K = 12


def dino(**config: Any) -> Dino:
    """With a teacher that is another network, and a centre that is not zero."""
    objective = Dino(DinoConfig(prototypes=K, hidden=16, bottleneck=8, **config), vit(), World())
    for part in (objective.head, objective.teacher, objective.teacher_head):
        stir(part)
    objective.centre_K.copy_(torch.linspace(-0.2, 0.2, K))
    objective.before_step(0, 100)
    return objective


def plain_head(head: Any, features_D: Tensor) -> Tensor:
    """Cosines (K) of one row of features."""
    hidden = features_D
    for number in (0, 2, 4):
        hidden = hidden @ head.mlp[number].weight.T + head.mlp[number].bias
        if number < 4:
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return torch.stack([hidden @ row / hidden.norm() / row.norm() for row in head.prototypes])


def answers(network: Any, head: Any, inputs: Inputs, view: int) -> list[Tensor]:
    features_SD = network((inputs.views[view] - 0.5) / 0.5)
    return [plain_head(head, features_D) for features_D in features_SD]


def plain_loss(objective: Dino, inputs: Inputs, temperature: float) -> tuple[Tensor, Tensor]:
    """Σ over the slots that count of the mean over pairs of views; and the teacher's mean answer (K)."""
    config = objective._config
    said = [answers(objective.model, objective.head, inputs, view) for view in range(len(CROPS))]
    with torch.no_grad():
        network, head = objective.teacher.network, objective.teacher_head.network
        told = [answers(network, head, inputs, view) for view in range(config.global_views)]
    loss = torch.zeros(())
    for slot in COUNTED:
        pairs = []
        for t in range(config.global_views):
            target = ((told[t][slot] - objective.centre_K) / temperature).exp()
            target = target / target.sum()
            for s in range(len(CROPS)):
                if s != t:
                    answer = (said[s][slot] / config.student_temperature).exp()
                    pairs.append(-(target * (answer / answer.sum()).log()).sum())
        loss = loss + sum(pairs) / len(pairs)
    return loss, torch.stack([told[t][slot] for t in range(config.global_views) for slot in COUNTED]).mean(0)


@pytest.mark.parametrize("global_views", [2, 3])
def test_loss_gradients_and_centre_equal_the_paper(global_views: int) -> None:
    objective, given = dino(global_views=global_views), views(*CROPS)
    objective.train()
    terms = objective(given)
    terms.loss.backward()
    ours = gradients(objective)
    objective.zero_grad()
    expected, mean_K = plain_loss(objective, given, 0.04)
    expected.backward()
    assert terms.loss.item() == pytest.approx(expected.item(), abs=2e-5)
    assert terms.weight.item() == len(COUNTED)
    assert 0 < terms.metrics["teacher_entropy"].item() < len(COUNTED) * math.log(K)
    assert_same(ours, gradients(objective))
    learnt = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    assert ours.keys() == learnt  # all take part, as DDP demands; and no other has a gradient
    assert {name.split(".")[0] for name in learnt} == {"model", "head"}
    wanted_K = 0.9 * objective.centre_K + 0.1 * mean_K
    objective.after_step(1, 100)
    torch.testing.assert_close(objective.centre_K, wanted_K, rtol=0, atol=1e-6)


def test_what_weighs_nothing_leaves_no_trace() -> None:
    objective, given = dino(), views(*CROPS)
    start = objective.centre_K.clone()
    said = []
    for step in range(2):
        objective.zero_grad()
        objective.centre_K.copy_(start)
        objective.before_step(0, 100)
        terms = objective(given)
        terms.loss.backward()
        found = gradients(objective)
        if step == 0:
            objective._config = objective._config.model_copy(update={"momentum": 1.0})
        objective.after_step(1, 100)
        said.append(found | {"loss": terms.loss.detach(), "centre": objective.centre_K.clone()})
        spoil_weightless(given)
    assert_same(said[0], said[1], 1e-6)


def test_micro_batches_see_the_same_centre_and_move_it_as_the_whole_batch() -> None:
    def run(*cuts: slice) -> dict[str, Tensor]:
        objective, given = dino(), views(*CROPS)
        for cut in cuts:
            none = torch.full((SLOTS,), -1)[cut]
            first, *more = (view[cut] for view in given.views)
            objective(Inputs(first, none, none, none.float(), given.weights_S[cut], tuple(more))).loss.backward()
        found = gradients(objective)
        objective.after_step(1, 100)
        return found | {"centre": objective.centre_K}

    assert_same(run(slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 6)), run(slice(0, 6)))


def test_images_that_are_not_finite_leave_the_centre_alone() -> None:
    objective, given = dino(), views(*CROPS)
    before = objective.centre_K.clone()
    given.images_SCHW.fill_(math.nan)
    objective(given)
    objective.after_step(1, 100)
    assert torch.equal(objective.centre_K, before)


def test_the_teachers_temperature_rises_then_stays() -> None:
    objective = dino(teacher_temperature=(0.02, 0.06), teacher_warmup=0.5)
    seen = []
    for step in (0, 10, 20, 39):
        objective.before_step(step, 40)
        seen.append(objective._temperature)
    assert seen == pytest.approx([0.02, 0.04, 0.06, 0.06])
    at_once = dino(teacher_warmup=0.0)
    assert at_once._temperature == 0.07


def test_the_prototypes_stand_still_at_the_start() -> None:
    objective = dino(freeze_head=0.1)
    for step, frozen in ((0, True), (9, True), (10, False)):
        objective(views(*CROPS)).loss.backward()
        objective.before_update(step, 100)
        assert (objective.head.prototypes.grad is None) == frozen
        assert objective.head.mlp[0].weight.grad is not None


def test_the_product_is_the_teacher_which_follows() -> None:
    objective = dino(momentum=0.9)
    assert objective.product is objective.teacher.network
    before = objective.product.get_parameter("norm.weight").clone()
    objective.after_step(1, 100)
    expected = 0.9 * before + 0.1 * objective.model.get_parameter("norm.weight")
    torch.testing.assert_close(objective.product.get_parameter("norm.weight"), expected, rtol=0, atol=1e-6)
    given = views(32)
    with torch.no_grad():
        expected = objective.teacher.network((given.images_SCHW - 0.5) / 0.5)
    torch.testing.assert_close(objective.predict(given.images_SCHW), expected, rtol=0, atol=1e-6)


def test_the_student_drops_out_and_the_teacher_does_not() -> None:
    model = vit(dropout=0.3, drop_path=0.3)
    objective = Dino(DinoConfig(prototypes=K, hidden=16, bottleneck=8), model, World()).train()
    pixels = views(32).images_SCHW
    assert not torch.equal(objective.model(pixels), objective.model(pixels))
    assert torch.equal(objective.teacher(pixels), objective.teacher(pixels))
    objective.eval()
    objective.train()
    assert torch.equal(objective.teacher(pixels), objective.teacher(pixels))
