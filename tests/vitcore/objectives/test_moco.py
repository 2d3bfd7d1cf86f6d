"""MoCo v3 (2104.02057) against its algorithm 1 written down plainly."""

from __future__ import annotations

import math

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
from vitcore.models import build
from vitcore.objectives import Embeddings
from vitcore.objectives.heads import GlobalBatchNorm, Projector
from vitcore.objectives.moco import Moco
from vitcore.objectives.momentum import momentum_at
from vitcore.recipe import MixerConfig, MocoConfig
from vitcore.world import World

COUNTED = [slot for slot, weight in enumerate(WEIGHTS) if weight]


def moco(**config: float | bool) -> Moco:
    """With heads whose norms scale and shift, and a momentum network that is another one."""
    objective = Moco(MocoConfig(width=8, hidden=16, **config), vit(), World())  # type: ignore[arg-type]
    stir(objective.query)
    stir(objective.momentum_model)
    stir(objective.momentum_projector)
    return objective


def plain_head(projector: Projector, rows_SD: Tensor) -> Tensor:
    """Linear, batch norm over the rows that count, ReLU between them; by columns."""
    for number, (layer, norm) in enumerate(zip(projector.layers, projector.norms, strict=True)):
        assert isinstance(layer, torch.nn.Linear)
        assert isinstance(norm, GlobalBatchNorm)
        columns = []
        for feature, column_S in enumerate((rows_SD @ layer.weight.T).unbind(1)):
            values = [column_S[slot] for slot in COUNTED]
            mean = sum(values) / len(values)
            variance = sum((value - mean) ** 2 for value in values) / len(values)
            normed_S = (column_S - mean) / (variance + 1e-5) ** 0.5
            if norm.weight is not None and norm.bias is not None:
                normed_S = normed_S * norm.weight[feature] + norm.bias[feature]
            columns.append(normed_S)
        last = number == len(projector.layers) - 1
        rows_SD = torch.stack(columns, 1) if last else torch.stack(columns, 1).clamp_min(0)
    return rows_SD


def plain_loss(objective: Moco, inputs: object, temperature: float) -> Tensor:
    asked, told = [], []
    for view in inputs.views:  # type: ignore[attr-defined]
        pixels = (view - 0.5) / 0.5
        query_SE = plain_head(objective.query.projector, objective.model(pixels))
        asked.append(plain_head(objective.query.predictor, query_SE))
        with torch.no_grad():
            key_SD = objective.momentum_model.network(pixels)
            told.append(plain_head(objective.momentum_projector.network, key_SD))
    loss = torch.zeros(())
    for queries, keys in ((asked[0], told[1]), (asked[1], told[0])):
        for slot in COUNTED:
            likeness = {
                key: (queries[slot] @ keys[key]) / queries[slot].norm() / keys[key].norm() / temperature
                for key in COUNTED
            }
            loss = loss + 2 * temperature * (sum(like.exp() for like in likeness.values()).log() - likeness[slot])
    return loss


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_loss_and_gradients_equal_the_paper(temperature: float) -> None:
    objective, given = moco(temperature=temperature), views(32, 32)
    objective.train()
    terms = objective.couple(objective(given), given.weights_S)
    terms.loss.backward()
    ours = gradients(objective)
    objective.zero_grad()
    expected = plain_loss(objective, given, temperature)
    expected.backward()
    assert terms.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert terms.weight.item() == len(COUNTED)
    assert 0 <= terms.metrics["found"].item() <= len(COUNTED)
    assert_same(ours, gradients(objective))
    learnt = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    assert ours.keys() == learnt  # all take part, as DDP demands; and no other has a gradient
    assert not any(name.startswith("momentum") or "patch_embed" in name for name in learnt)


def test_micro_batches_share_the_statistics_of_the_whole_batch() -> None:
    """To the last digits: what a cached step loses in fp32 is rounding."""
    objective, given = moco().double(), views(32, 32)
    weights_S = given.weights_S.double()

    def embed(rows: slice) -> Embeddings:
        first, second = (view[rows].double() for view in given.views)
        none = given.labels_S[rows]
        found: Embeddings = objective(Inputs(first, none, none, none.double(), weights_S[rows], (second,)))
        return found

    objective.couple(embed(slice(0, SLOTS)), weights_S).loss.backward()
    whole = gradients(objective)
    objective.zero_grad()
    cuts = (slice(0, 2), slice(2, SLOTS))
    parts = [embed(rows) for rows in cuts]
    rows = [torch.cat(column).detach().requires_grad_() for column in zip(*(part.rows for part in parts), strict=True)]
    shared = [value.detach().requires_grad_() for value in parts[0].shared]
    objective.couple(Embeddings(tuple(rows), tuple(shared)), weights_S).loss.backward()
    for cut, part in zip(cuts, parts, strict=True):
        carried = [(value, cached.grad[cut]) for value, cached in zip(part.rows[:2], rows[:2], strict=True)]
        carried += [(value, cached.grad / 2) for value, cached in zip(part.shared, shared, strict=True)]
        torch.autograd.backward(*zip(*carried, strict=True))
    assert_same(gradients(objective), whole, 1e-11)


def test_what_weighs_nothing_leaves_no_trace() -> None:
    objective, given = moco(), views(32, 32)
    said = []
    for _ in range(2):
        objective.zero_grad()
        terms = objective.couple(objective(given), given.weights_S)
        terms.loss.backward()
        said.append(({"loss": terms.loss.detach()}, gradients(objective)))
        spoil_weightless(given)
    assert_same(said[0][0], said[1][0], 1e-6)
    assert_same(said[0][1], said[1][1], 1e-6)


def test_a_batch_of_padding_alone_is_nothing_and_no_fault() -> None:
    objective, given = moco(), views(32, 32)
    terms = objective.couple(objective(given), torch.zeros(SLOTS))
    terms.loss.backward()
    assert terms.loss.item() == terms.weight.item() == 0
    assert all(gradient.isfinite().all() for gradient in gradients(objective).values())


def test_the_heads_have_the_layers_of_the_paper() -> None:
    query = Moco(MocoConfig(), vit(), World()).query
    for head, shapes in (
        (query.projector, [(4096, 32), (4096, 4096), (256, 4096)]),
        (query.predictor, [(4096, 256), (256, 4096)]),
    ):
        assert [tuple(layer.weight.shape) for layer in head.layers] == shapes
        assert all(layer.bias is None for layer in head.layers)
        assert [norm.weight is None for norm in head.norms] == [False] * (len(shapes) - 1) + [True]


def test_the_patches_learn_only_where_that_is_asked_for_and_other_stems_always() -> None:
    assert not moco().model.get_parameter("patch_embed.proj.weight").requires_grad
    assert moco(freeze_patches=False).model.get_parameter("patch_embed.proj.weight").requires_grad


def test_other_architectures_learn_too() -> None:
    mixer = build(MixerConfig(patch=8, width=16, depth=1), num_classes=0, image_size=32)
    objective = Moco(MocoConfig(width=8, hidden=16, freeze_patches=False), mixer, World())  # type: ignore[arg-type]
    given = views(32, 32)
    objective.couple(objective(given), given.weights_S).loss.backward()
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)


def test_the_momentum_networks_follow_at_a_momentum_that_grows_to_one() -> None:
    objective = moco(momentum=0.9)
    followed = (
        (objective.momentum_model.network, objective.model),
        (objective.momentum_projector.network, objective.query.projector),
    )
    before = [[value.clone() for value in network.parameters()] for network, _ in followed]
    objective.after_step(3, 8)  # step number 2 of 8 is done
    momentum = 1 - 0.1 * (math.cos(math.pi * 2 / 8) + 1) / 2
    for (network, source), olds in zip(followed, before, strict=True):
        for value, old, theirs in zip(network.parameters(), olds, source.parameters(), strict=True):
            torch.testing.assert_close(value, momentum * old + (1 - momentum) * theirs, rtol=0, atol=1e-6)
    assert momentum_at(0.9, 0, 8) == pytest.approx(0.9)
    assert momentum_at(0.9, 8, 8) == 1


def test_the_momentum_network_drops_nothing_out() -> None:
    objective = Moco(MocoConfig(width=8, hidden=16), vit(dropout=0.5, drop_path=0.5), World())
    objective.train()
    one, other = (objective(views(32, 32)).rows for _ in range(2))
    assert not torch.equal(one[0], other[0])
    assert torch.equal(one[2], other[2])
    assert torch.equal(one[3], other[3])


def test_batch_norm_remembers_for_evaluation() -> None:
    norm, reference = GlobalBatchNorm(4, World()), torch.nn.BatchNorm1d(4)
    for seed in range(3):
        rows_SD = torch.randn(SLOTS, 4, generator=torch.Generator().manual_seed(seed)) * 3 + 1
        weights_S = torch.tensor(WEIGHTS)
        ours, theirs = norm(rows_SD, weights_S), reference(rows_SD[weights_S > 0])
        torch.testing.assert_close(ours[weights_S > 0], theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(norm.running_mean, reference.running_mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(norm.running_var, reference.running_var, rtol=0, atol=1e-5)
    norm.eval(), reference.eval()
    torch.testing.assert_close(norm(rows_SD, weights_S), reference(rows_SD), rtol=0, atol=1e-6)
