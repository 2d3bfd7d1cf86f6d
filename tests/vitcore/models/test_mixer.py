"""MLP-Mixer computes what timm computes, belongs to one resolution, and can be trained."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import nn

from vitcore.data.loading.batch import Inputs
from vitcore.errors import RequestError
from vitcore.models import adapt, build
from vitcore.models.mixer import Mixer
from vitcore.objectives import Frozen
from vitcore.objectives.classify import Classify
from vitcore.objectives.distill import Distill
from vitcore.recipe import ClassifyConfig, DistillConfig, MixerConfig, OptimConfig, VitConfig
from vitcore.train.optim import parameter_groups
from vitcore.world import World

TINY: dict[str, Any] = {"patch": 8, "width": 40, "depth": 3}


def mixer(num_classes: int = 7, image_size: int = 32, **config: Any) -> Mixer:
    torch.manual_seed(0)
    model = build(MixerConfig(**{**TINY, **config}), num_classes=num_classes, image_size=image_size)
    assert isinstance(model, Mixer)
    return model


def scattered(model: Mixer) -> Mixer:
    """Weights far from their initial values, so that no term hides behind a zero bias or a unit norm."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def norms_of(model: nn.Module) -> list[nn.LayerNorm]:
    return [module for module in model.modules() if isinstance(module, nn.LayerNorm)]


def inputs() -> Inputs:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(7, (6,), generator=generator)
    return Inputs(torch.rand(6, 3, 32, 32, generator=generator), labels, labels, torch.ones(6), torch.ones(6))


@pytest.mark.parametrize(
    ("config", "image_size", "ratios"),
    [({}, 32, (0.5, 4.0)), ({"patch": 16, "token_ratio": 1.7, "channel_ratio": 2.1}, 48, (1.7, 2.1))],
)
def test_logits_and_gradients_equal_timms(config: dict[str, Any], image_size: int, ratios: tuple[float, float]) -> None:
    model = scattered(mixer(image_size=image_size, **config))
    twin = MlpMixer(
        num_classes=7,
        img_size=image_size,
        patch_size=model.config.patch,
        num_blocks=3,
        embed_dim=40,
        mlp_ratio=ratios,
    ).eval()
    twin.load_state_dict(model.state_dict())
    assert {norm.eps for norm in norms_of(model)} == {norm.eps for norm in norms_of(twin)} == {1e-6}
    images = torch.randn(3, 3, image_size, image_size)
    logits, expected = model(images), twin(images)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    logits.square().sum().backward()
    expected.square().sum().backward()
    theirs = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("name", "config", "parameters"),
    [
        ("mixer_b16_224", MixerConfig(), 59_880_472),
        ("mixer_s32_224", MixerConfig(patch=32, width=512, depth=8), 19_104_624),
        ("mixer_l16_224", MixerConfig(width=1024, depth=24), 208_196_168),
    ],
)
def test_parameters_are_timms(name: str, config: MixerConfig, parameters: int) -> None:
    with torch.device("meta"):
        model, theirs = build(config, num_classes=1000, image_size=224), timm.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in theirs.state_dict().items()}


def test_the_features_are_what_the_head_reads() -> None:
    model = scattered(mixer())
    headless = adapt(model, num_classes=0)
    images = torch.randn(2, 3, 32, 32)
    assert headless(images).shape == (2, 40)
    assert headless.head_parameters() == ()
    torch.testing.assert_close(model.head(headless(images)), model(images))


def test_it_takes_one_resolution_and_says_so() -> None:
    model = mixer()
    with pytest.raises(RequestError, match="cannot be carried to 48"):
        adapt(model, image_size=48)
    assert set(model.state_for(32)) == set(model.state_dict())
    with pytest.raises(RequestError, match="one size"):
        model.allow_any_size()
    for size in ((48, 48), (32, 48)):
        with pytest.raises(RequestError, match="takes 32 x 32"):
            model(torch.zeros(1, 3, *size))
    with pytest.raises(RequestError, match="take 96 or 104"):
        mixer(image_size=100)


def test_layers_are_numbered_from_stem_to_head() -> None:
    model = mixer()
    numbers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert list(numbers.values()) == sorted(numbers.values())
    assert {name for name, number in numbers.items() if number == 0} == {"stem.proj.weight", "stem.proj.bias"}
    assert [numbers[f"blocks.{i}.mlp_tokens.fc1.weight"] for i in range(3)] == [1, 2, 3]
    assert {numbers[name] for name in model.head_parameters()} == {model.num_layers} == {numbers["norm.weight"]} == {4}
    for unknown in ("head.scale", "position"):
        with pytest.raises(KeyError):
            model.layer_of(unknown)


def test_dropout_and_drop_path_act_in_training_only_and_grow() -> None:
    images = torch.randn(4, 3, 32, 32)
    for rates in ({"dropout": 0.3}, {"drop_path": 0.5}):
        model = mixer(**rates)
        assert not torch.equal(model(images), model(images))
        model.eval()
        assert torch.equal(model(images), model(images))
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0, 0.25, 0.5])


def test_initial_weights_have_the_prescribed_spread() -> None:
    model = mixer(width=192, num_classes=100, image_size=64)
    spreads = {
        "stem.proj": 192**-0.5,
        "blocks.0.mlp_tokens.fc1": 64**-0.5,
        "blocks.0.mlp_tokens.fc2": 96**-0.5,
        "blocks.0.mlp_channels.fc2": 768**-0.5,
        "head": 0.02,
    }
    for name, spread in spreads.items():
        assert model.get_parameter(f"{name}.weight").std().item() == pytest.approx(spread, rel=0.1), name
    assert all(not value.any() for name, value in model.named_parameters() if name.endswith("bias"))


def test_reset_head_starts_at_zero() -> None:
    model = mixer()
    model.reset_head(5)
    assert model.num_classes == 5
    assert model(torch.randn(1, 3, 32, 32)).tolist() == [[0.0] * 5]


def test_it_learns_labels_and_a_teacher() -> None:
    world = World()
    teacher = Frozen(
        build(VitConfig(patch=8, width=32, depth=1, heads=2), num_classes=7, image_size=32), torch.device("cpu")
    )
    counts = [1] * 7
    for objective in (
        Classify(ClassifyConfig(), mixer(), counts, world),
        Distill(DistillConfig(), mixer(), teacher, counts, world),
    ):
        objective(inputs()).loss.backward()
        for name, parameter in objective.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


def test_biases_and_norms_are_never_decayed() -> None:
    objective = Classify(ClassifyConfig(), mixer(), [1] * 7, World())
    groups = parameter_groups(objective, OptimConfig(weight_decay=0.3))
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}  # type: ignore[attr-defined]
    norms = {f"{name}.weight" for name, module in objective.named_modules() if isinstance(module, nn.LayerNorm)}
    assert len(norms) == 7
    assert set(decay) == {name for name, _ in objective.named_parameters()}
    for name, rate in decay.items():
        assert rate == (0.0 if name.endswith("bias") or name in norms else 0.3), name
