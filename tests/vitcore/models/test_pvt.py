"""PVT v2 computes what timm computes, at any size, gives a feature pyramid, and can be trained."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import nn

from vitcore.data.loading.batch import Inputs
from vitcore.errors import RequestError
from vitcore.models import adapt, build
from vitcore.models.pvt import Pvt
from vitcore.objectives import Frozen
from vitcore.objectives.classify import Classify
from vitcore.objectives.distill import Distill
from vitcore.recipe import ClassifyConfig, DistillConfig, OptimConfig, PvtConfig, VitConfig
from vitcore.train.optim import parameter_groups
from vitcore.world import World

TINY: dict[str, Any] = {
    "widths": (16, 32, 40, 64),
    "depths": (1, 2, 1, 1),
    "heads": (1, 2, 5, 8),
    "mlp_ratios": (4, 2, 2, 1),
}
VARIANTS: list[dict[str, Any]] = [{}, {"linear": True}, {"reductions": (4, 1, 2, 1)}]


def pvt(num_classes: int = 7, image_size: int = 64, **config: Any) -> Pvt:
    torch.manual_seed(0)
    model = build(PvtConfig(**{**TINY, **config}), num_classes=num_classes, image_size=image_size)
    assert isinstance(model, Pvt)
    return model


def scattered(model: Pvt) -> Pvt:
    """Weights far from their initial values, so that no term hides behind a zero bias or a unit norm."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def timm_twin(model: Pvt) -> nn.Module:
    """timm's model of the same shape with the same weights, loaded strictly."""
    config = model.config
    twin = PyramidVisionTransformerV2(
        num_classes=model.num_classes,
        depths=config.depths,
        embed_dims=config.widths,
        num_heads=config.heads,
        sr_ratios=config.reductions,
        mlp_ratios=config.mlp_ratios,
        linear=config.linear,
    )
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def inputs() -> Inputs:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(7, (6,), generator=generator)
    return Inputs(torch.rand(6, 3, 64, 64, generator=generator), labels, labels, torch.ones(6), torch.ones(6))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (75, 101)])
def test_logits_equal_timms_at_any_size(variant: dict[str, Any], size: tuple[int, int]) -> None:
    model = scattered(pvt(**variant))
    model.allow_any_size()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(model(images), timm_twin(model)(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("linear", [False, True])
def test_gradients_equal_timms(linear: bool) -> None:
    model = scattered(pvt(linear=linear))
    twin = timm_twin(model)
    images = torch.randn(2, 3, 64, 64)
    model(images).square().sum().backward()
    twin(images).square().sum().backward()
    modules, theirs = dict(twin.named_modules()), dict(twin.named_parameters())
    for name, module in model.named_modules():
        assert getattr(module, "eps", None) == getattr(modules.get(name), "eps", None), name
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("name", "config", "parameters"),
    [
        ("pvt_v2_b0", PvtConfig(widths=(32, 64, 160, 256), depths=(2, 2, 2, 2)), 3_666_760),
        ("pvt_v2_b1", PvtConfig(depths=(2, 2, 2, 2)), 14_009_000),
        ("pvt_v2_b2", PvtConfig(), 25_362_856),
        ("pvt_v2_b3", PvtConfig(depths=(3, 4, 18, 3)), 45_238_696),
        ("pvt_v2_b4", PvtConfig(depths=(3, 8, 27, 3)), 62_556_072),
        ("pvt_v2_b5", PvtConfig(depths=(3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4)), 81_956_008),
        ("pvt_v2_b2_li", PvtConfig(linear=True), 22_553_512),
    ],
)
def test_parameters_are_timms(name: str, config: PvtConfig, parameters: int) -> None:
    with torch.device("meta"):
        model, theirs = build(config, num_classes=1000, image_size=224), timm.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in theirs.state_dict().items()}


@pytest.mark.parametrize("linear", [False, True])
def test_the_pyramid_is_timms_and_its_last_map_is_what_the_head_reads(linear: bool) -> None:
    model = scattered(pvt(linear=linear))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps = model.pyramid(images)
        twin: Any = timm_twin(model)
        theirs = twin.forward_intermediates(images, intermediates_only=True)
        headless = adapt(model, num_classes=0)
        assert [tuple(plane.shape) for plane in maps] == [
            (2, 16, 16, 24),
            (2, 32, 8, 12),
            (2, 40, 4, 6),
            (2, 64, 2, 3),
        ]
        for ours, expected in zip(maps, theirs, strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
        features = maps[-1].mean(dim=(2, 3))
        torch.testing.assert_close(headless(images), features)
        torch.testing.assert_close(model.head(features), model(images))
    assert headless.head_parameters() == ()


def test_sides_that_do_not_divide_are_rounded_up() -> None:
    maps = pvt().pyramid(torch.zeros(1, 3, 65, 79))
    assert [tuple(plane.shape[2:]) for plane in maps] == [(17, 20), (9, 10), (5, 5), (3, 3)]


def test_images_too_small_for_a_reduction_are_refused() -> None:
    model = pvt(image_size=29)  # the first stage's map is 8 x 8
    assert model(torch.zeros(1, 3, 29, 40)).shape == (1, 7)
    with pytest.raises(RequestError, match="need 29"):
        model(torch.zeros(1, 3, 40, 28))
    with pytest.raises(RequestError, match="need 29"):
        pvt(image_size=28)
    assert pvt(image_size=8, linear=True)(torch.zeros(1, 3, 8, 8)).shape == (1, 7)
    with pytest.raises(RequestError, match="need 33"):
        pvt(image_size=32, reductions=(1, 1, 3, 1))


def test_numbers_below_one_are_refused() -> None:
    for field in ("widths", "depths", "heads", "mlp_ratios", "reductions"):
        with pytest.raises(ValidationError, match="at least 1"):
            PvtConfig(**{**TINY, field: (8, 8, 0, 8)})


def test_weights_fit_another_resolution() -> None:
    model = scattered(pvt())
    larger = adapt(model, image_size=96)
    images = torch.randn(1, 3, 96, 96)
    assert larger.image_size == 96
    assert torch.equal(larger(images), model(images))


def test_layers_are_numbered_from_stem_to_head() -> None:
    model = pvt(depths=(1, 2, 1, 2))
    numbers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert list(numbers.values()) == sorted(numbers.values())
    assert set(numbers.values()) == set(range(model.num_layers + 1))
    expected = {
        "patch_embed.proj.weight": 0,
        "patch_embed.norm.bias": 0,
        "stages.0.blocks.0.attn.sr.weight": 1,
        "stages.0.norm.weight": 1,
        "stages.1.downsample.proj.weight": 2,
        "stages.1.blocks.1.mlp.dwconv.weight": 3,
        "stages.1.norm.weight": 3,
        "stages.2.blocks.0.attn.q.weight": 4,
        "stages.3.downsample.norm.weight": 5,
        "stages.3.blocks.1.mlp.fc2.bias": 6,
        "stages.3.norm.weight": 7,
        "head.weight": 7,
        "head.bias": 7,
    }
    assert {name: numbers[name] for name in expected} == expected
    for unknown in ("head.scale", "stages.0.blocks.9.norm1.weight", "position"):
        with pytest.raises(KeyError):
            model.layer_of(unknown)


def test_dropout_and_drop_path_act_in_training_only_and_grow() -> None:
    images = torch.randn(4, 3, 64, 64)
    for rates in ({"dropout": 0.3}, {"drop_path": 0.4}):
        model = pvt(**rates)
        assert not torch.equal(model(images), model(images))
        model.eval()
        assert torch.equal(model(images), model(images))
    found = [block.drop_path.rate for stage in model._stages() for block in stage.blocks]
    assert found == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_initial_weights_have_the_prescribed_spread() -> None:
    model = pvt(widths=(64, 64, 80, 128), num_classes=100)
    spreads = {
        "patch_embed.proj": (2 / (49 * 64)) ** 0.5,
        "stages.0.blocks.0.attn.sr": (2 / (64 * 64)) ** 0.5,
        "stages.0.blocks.0.mlp.dwconv": (2 / 9) ** 0.5,
        "stages.0.blocks.0.attn.kv": 0.02,
        "head": 0.02,
    }
    for name, spread in spreads.items():
        assert model.get_parameter(f"{name}.weight").std().item() == pytest.approx(spread, rel=0.1), name
    assert all(not value.any() for name, value in model.named_parameters() if name.endswith("bias"))


def test_reset_head_starts_at_zero() -> None:
    model = pvt()
    model.reset_head(5)
    assert model.num_classes == 5
    assert model(torch.randn(1, 3, 64, 64)).tolist() == [[0.0] * 5]


@pytest.mark.parametrize("linear", [False, True])
def test_it_learns_labels_and_a_teacher(linear: bool) -> None:
    world = World()
    teacher = Frozen(
        build(VitConfig(patch=32, width=32, depth=1, heads=2), num_classes=7, image_size=64), torch.device("cpu")
    )
    counts = [1] * 7
    for objective in (
        Classify(ClassifyConfig(), scattered(pvt(linear=linear)).train(), counts, world),
        Distill(DistillConfig(), scattered(pvt(linear=linear)).train(), teacher, counts, world),
    ):
        objective(inputs()).loss.backward()
        for name, parameter in objective.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


def test_biases_and_norms_are_never_decayed() -> None:
    objective = Classify(ClassifyConfig(), pvt(), [1] * 7, World())
    groups = parameter_groups(objective, OptimConfig(weight_decay=0.3))
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}  # type: ignore[attr-defined]
    norms = {f"{name}.weight" for name, module in objective.named_modules() if isinstance(module, nn.LayerNorm)}
    assert len(norms) == 2 * 5 + 2 * 4 + 4  # of blocks; of stages and embeddings; of reductions
    assert set(decay) == {name for name, _ in objective.named_parameters()}
    for name, rate in decay.items():
        assert rate == (0.0 if name.endswith("bias") or name in norms else 0.3), name
