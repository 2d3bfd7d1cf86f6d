"""Groups, schedule, clipping and the optimiser's state."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from vitcore.models.build import build_backbone
from vitcore.objectives.classify import Classify
from vitcore.recipe import ClassifyConfig, CnnConfig, DeitConfig, OptimConfig, VitConfig
from vitcore.train.optim import (
    build_optimizer,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    parameter_groups,
    scale_and_clip,
    set_schedule,
    weight_decay,
)
from vitcore.world import World

CONFIGS = {
    "vit": VitConfig(patch=8, width=32, depth=2, heads=2),
    "mean": VitConfig(patch=8, width=32, depth=2, heads=2, pooling="mean"),
    "deit": DeitConfig(patch=8, width=32, depth=2, heads=2),
    "cnn": CnnConfig(name="shufflenet_v2_x0_5", dropout=0),
}


def model(kind: str = "deit") -> Classify:
    torch.manual_seed(0)
    network = build_backbone(CONFIGS[kind], num_classes=3, image_size=32)
    return Classify(ClassifyConfig(), network, [1, 1, 1], World())


def by_name(groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: group for group in groups for name in group["names"]}


@pytest.mark.parametrize("kind", CONFIGS)
def test_biases_norms_tokens_and_positions_are_never_decayed(kind: str) -> None:
    network = model(kind)
    groups = by_name(parameter_groups(network, OptimConfig(weight_decay=0.3)))
    assert set(groups) == {name for name, _ in network.named_parameters()}
    norms = {
        f"{prefix}.weight"
        for prefix, module in network.named_modules()
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d)
    }
    assert norms
    for name, group in groups.items():
        spared = name.endswith(("bias", "pos_embed", "_token")) or name in norms
        assert group["weight_decay"] == (0.0 if spared else 0.3), name
    for group in parameter_groups(network, OptimConfig()):
        for name, parameter in zip(group["names"], group["params"], strict=True):  # type: ignore[call-overload]
            assert network.get_parameter(name) is parameter


def test_frozen_parameters_are_left_out() -> None:
    network = model("vit")
    network.get_parameter("model.head.weight").requires_grad_(False)
    assert "model.head.weight" not in by_name(parameter_groups(network, OptimConfig()))


def test_layers_learn_slower_towards_the_stem() -> None:
    groups = by_name(parameter_groups(model(), OptimConfig(layer_decay=0.5)))
    expected = {
        "model.head.weight": 1.0,
        "model.head_dist.bias": 1.0,
        "model.norm.weight": 1.0,
        "model.blocks.1.mlp.fc1.weight": 0.5,
        "model.blocks.0.attn.qkv.bias": 0.25,
        "model.patch_embed.proj.weight": 0.125,
        "model.pos_embed": 0.125,
        "model.cls_token": 0.125,
    }
    assert {name: groups[name]["lr_scale"] for name in expected} == expected
    optimizer = build_optimizer(model(), OptimConfig(layer_decay=0.5))
    set_schedule(optimizer, 0.8, 0.05)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    assert rates["model.head.weight"] == 0.8
    assert rates["model.blocks.0.attn.qkv.bias"] == 0.2


def test_warm_up_is_linear_and_the_rest_a_cosine() -> None:
    config = OptimConfig(lr=1.0, min_lr=0.1)
    rates = [learning_rate(config, step, warmup=4, total=14) for step in range(16)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[9] == pytest.approx(0.55)
    assert rates[13] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.9)))
    assert rates[14:] == pytest.approx([0.1, 0.1])
    assert rates[4:14] == sorted(rates[4:14], reverse=True)
    assert learning_rate(config, 0, warmup=0, total=1) == 1.0
    assert learning_rate(config, 9, warmup=10, total=10) == 1.0


def test_weight_decay_follows_a_cosine_where_it_decays_at_all() -> None:
    config = OptimConfig(weight_decay=0.04, final_weight_decay=0.4)
    decays = [weight_decay(config, step, total=10) for step in (0, 5, 10)]
    assert decays == pytest.approx([0.04, 0.22, 0.4])
    assert weight_decay(OptimConfig(weight_decay=0.04), 7, total=10) == 0.04
    optimizer = build_optimizer(model(), config)
    set_schedule(optimizer, 1.0, 0.22)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.22}


@pytest.mark.parametrize("clip", [None, 1e-3, 0.5, 1e6])
@pytest.mark.parametrize("scale", [1.0, 0.125])
def test_scaling_and_clipping_equal_torchs(scale: float, clip: float | None) -> None:
    ours = [nn.Parameter(torch.zeros(n, 7)) for n in (1, 5, 30)]
    generator = torch.Generator().manual_seed(0)
    for parameter in ours:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    ours.append(nn.Parameter(torch.zeros(3)))  # never had a gradient
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    for parameter, mine in zip(theirs[:-1], ours, strict=False):
        assert mine.grad is not None
        parameter.grad = mine.grad * scale
    expected = nn.utils.clip_grad_norm_(theirs, math.inf if clip is None else clip)
    assert scale_and_clip(ours, scale, clip) == pytest.approx(expected.item(), rel=1e-6)
    for mine, yours in zip(ours[:-1], theirs[:-1], strict=True):
        torch.testing.assert_close(mine.grad, yours.grad, rtol=1e-5, atol=1e-9)
    assert ours[-1].grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_told(bad: float) -> None:
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([1.0, bad, 2.0])
    assert not math.isfinite(scale_and_clip([parameter], 0.5, 1.0))


def step(objective: Classify, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    objective.model(torch.randn(2, 3, 32, 32, generator=generator)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


STATE = {"adamw": ("step", "exp_avg", "exp_avg_sq"), "lamb": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}


@pytest.mark.parametrize("name", STATE)
def test_the_optimisers_state_makes_the_round_trip(name: Any) -> None:
    config = OptimConfig(name=name, lr=1e-2, layer_decay=0.7)
    network = model()
    optimizer = build_optimizer(network, config)
    for seed in range(3):
        step(network, optimizer, seed)
    twin = copy.deepcopy(network)
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}
    counted = {key for key in saved if key.startswith("group_step/")}
    assert len(counted) == (len(optimizer.param_groups) if name == "lamb" else 0)
    assert set(saved) - counted == {f"{m}/{n}" for m in STATE[name] for n, _ in network.named_parameters()}
    restored = build_optimizer(twin, config)
    load_optimizer_tensors(restored, saved)
    for seed in range(3, 6):
        step(network, optimizer, seed)
        step(twin, restored, seed)
    for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_parameters_without_state_stay_without() -> None:
    optimizer = build_optimizer(model(), OptimConfig())
    load_optimizer_tensors(optimizer, {})
    assert not optimizer.state


def test_all_state_goes_to_the_parameters_device() -> None:
    """A fused optimiser on a GPU counts its steps there, too; `meta` stands for a GPU here."""
    network = model()
    optimizer = build_optimizer(network, OptimConfig())
    step(network, optimizer, 0)
    saved = optimizer_tensors(optimizer)
    elsewhere = torch.optim.AdamW(parameter_groups(network.to("meta"), OptimConfig()))  # type: ignore[arg-type]
    load_optimizer_tensors(elsewhere, saved)
    assert {value.device.type for state in elsewhere.state.values() for value in state.values()} == {"meta"}
