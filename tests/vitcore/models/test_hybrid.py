"""Hybrids compute what timm computes, at any stem, and go to timm and back."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.layers import GroupNormAct, HybridEmbed, StdConv2d, StdConv2dSame
from timm.models.resnetv2 import ResNetV2, create_resnetv2_stem
from timm.models.vision_transformer import VisionTransformer as TimmViT

from vitcore.errors import RequestError
from vitcore.models import VisionTransformer, adapt, build
from vitcore.models.hybrid import Hybrid, same_pad
from vitcore.models.interop.timm import from_timm, to_timm
from vitcore.recipe import HybridConfig

TINY: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2}


def scattered(model: Any) -> Any:
    """Weights far from their initial values, so that no term hides behind a zero bias or a unit norm."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def timm_hybrid(stem: tuple[int, ...], patch: int, image_size: int, conv: Any = None, **options: Any) -> Any:
    """timm's parts put together for a stem that none of its names stands for."""
    conv = conv or partial(StdConv2dSame, eps=1e-8)
    given = {"preact": False, "stem_type": "same", "conv_layer": conv, **options}
    backbone = ResNetV2(stem, num_classes=0, global_pool="", **given) if stem else create_resnetv2_stem(3, **given)
    return TimmViT(
        img_size=image_size,
        patch_size=patch,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=5,
        embed_layer=partial(HybridEmbed, backbone=backbone),
    )


@pytest.mark.parametrize(
    ("stem", "patch", "image_size", "grid"),
    [
        ((), 8, 64, 2),
        ((), 4, 48, 3),
        ((1,), 4, 48, 3),
        ((2, 1), 2, 48, 3),
        ((1, 1, 2), 1, 48, 3),
        ((1, 1, 1, 1), 1, 64, 2),
    ],
)
def test_logits_and_gradients_equal_timms(stem: tuple[int, ...], patch: int, image_size: int, grid: int) -> None:
    theirs = scattered(timm_hybrid(stem, patch, image_size))
    ours = from_timm(theirs).eval()
    assert type(ours) is Hybrid
    assert ours.config == HybridConfig(stem=stem, patch=patch, **TINY)
    assert (ours.image_size, ours.grid) == (image_size, grid)
    images = torch.randn(2, 3, image_size, image_size)
    logits, expected = ours(images), theirs(images)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.01
    logits.square().sum().backward()
    expected.square().sum().backward()
    gradients = dict(theirs.named_parameters())
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("name", "stem", "patch"),
    [
        ("vit_tiny_r_s16_p8_224", (), 8),
        ("vit_small_r26_s32_224", (2, 2, 2, 2), 1),
        ("vit_base_r50_s16_224", (3, 4, 9), 1),
        ("vit_large_r50_s32_224", (3, 4, 6, 3), 1),
    ],
)
def test_timms_hybrids_become_ours_and_theirs_again(name: str, stem: tuple[int, ...], patch: int) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=10, depth=1)
        ours = from_timm(theirs)
        written = to_timm(ours)
        config = json.loads(json.dumps(written.config))
        back = timm.create_model(config["architecture"], num_classes=10, **config["model_args"])
    assert isinstance(ours, Hybrid)
    assert (ours.config.stem, ours.config.patch, ours.image_size) == (stem, patch, 224)
    assert ours.config.mean == tuple(theirs.pretrained_cfg["mean"])
    shapes = {key: value.shape for key, value in back.state_dict().items()}
    assert shapes == {key: value.shape for key, value in written.state.items()}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}
    assert (config["architecture"], config["pretrained_cfg"]["first_conv"]) == (
        name,
        "patch_embed.backbone.stem.conv" if stem else "patch_embed.backbone.conv",
    )
    assert config["pretrained_cfg"]["first_conv"] + ".weight" in shapes


def test_a_small_hybrid_travels_bit_equal() -> None:
    options: dict[str, Any] = {"registers": 1, "pre_norm": True, "patch_bias": False, "layer_scale": 0.1}
    ours = scattered(build(HybridConfig(stem=(), patch=4, **options, **TINY), num_classes=3, image_size=32))
    written = to_timm(ours)
    theirs = timm.create_model(written.config["architecture"], num_classes=3, **written.config["model_args"]).eval()
    theirs.load_state_dict(written.state, strict=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), ours(images), atol=1e-5, rtol=0)
    back = from_timm(theirs)
    assert back.config == ours.config
    for name, value in ours.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
    with pytest.raises(RequestError, match=r"a hybrid with the stem \(1,\); it has \(\), \(2, 2, 2, 2\)"):
        to_timm(build(HybridConfig(stem=(1,), **TINY), num_classes=3, image_size=32))


@pytest.mark.parametrize(
    ("conv", "options", "complaint"),
    [
        (partial(StdConv2d, eps=1e-8), {}, "stem with StdConv2d has"),
        (StdConv2dSame, {}, "another epsilon than 1e-08"),
        (None, {"preact": True}, "stem with PreActBottleneck"),
        (None, {"stem_type": "deep_same"}, r"unknown patch_embed\.backbone\.stem\.conv1\.weight"),
        (None, {"avg_down": True}, "stem with DownsampleAvg"),
        (None, {"norm_layer": "batchnorm2d"}, "stem with BatchNormAct2d"),
        (None, {"norm_layer": partial(GroupNormAct, num_groups=16)}, "other group norms"),
        (None, {"act_layer": torch.nn.SiLU}, "stem with SiLU"),
        (None, {"stem_type": "fixed"}, "stem with ConstantPad2d"),
        (None, {"stem_type": ""}, "stem with MaxPool2d"),
        (None, {"width_factor": 2}, r"patch_embed\.proj\.weight is \(32, 512, 2, 2\), expected \(32, 256, 2, 2\)"),
    ],
)
def test_other_stems_are_named(conv: Any, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        from_timm(timm_hybrid((1,), 2, 32, conv, **options))


def test_another_size_takes_another_grid() -> None:
    model = scattered(build(HybridConfig(stem=(1,), patch=4, **TINY), num_classes=3, image_size=32))
    assert isinstance(model, VisionTransformer)
    larger, images = adapt(model, image_size=48), torch.randn(2, 3, 48, 48)
    assert larger.pos_embed.shape == (1, 1 + 9, 32)
    model.allow_any_size()
    torch.testing.assert_close(model(images), larger(images), atol=1e-5, rtol=0)
    with pytest.raises(RequestError, match="take 32 or 48"):
        adapt(model, image_size=40)


def test_the_stem_is_of_the_first_layer() -> None:
    model = build(HybridConfig(stem=(1, 1), patch=1, **TINY), num_classes=3, image_size=32)
    layers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert {layers[name] for name in layers if "backbone" in name} == {0}
    assert layers["blocks.1.norm1.weight"] == 2
    assert layers["head.weight"] == model.num_layers == 3
    assert model.undecayed() == {"pos_embed", "cls_token"}
    assert len(model.attention(torch.randn(1, 3, 32, 32))) == 2


def test_kernels_are_standardised() -> None:
    model = build(HybridConfig(stem=(1,), patch=4, **TINY), num_classes=3, image_size=32).eval()
    images = torch.randn(1, 3, 32, 32)
    before = model(images)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "backbone" in name and parameter.dim() == 4:
                parameter.mul_(3).add_(0.5)
    torch.testing.assert_close(model(images), before, atol=1e-4, rtol=1e-4)


def test_padding_gives_the_ceiling() -> None:
    for size in range(3, 12):
        for side, stride in ((7, 2), (3, 2), (3, 1), (1, 2), (1, 1)):
            maps = torch.ones(1, 1, size, size + 1)
            padded = same_pad(maps, side, stride)
            counts = [(length - side) // stride + 1 for length in padded.shape[-2:]]
            assert counts == [-(-size // stride), -(-(size + 1) // stride)]
            assert (padded == 1).sum() == maps.numel()


@pytest.mark.parametrize("stem", [(1, 1, 1, 1, 1), (0,), (2, -1)])
def test_stems_that_cannot_be_built_are_refused(stem: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match="up to four stages of 1 block or more"):
        build(HybridConfig(stem=stem, **TINY), num_classes=2, image_size=64)
