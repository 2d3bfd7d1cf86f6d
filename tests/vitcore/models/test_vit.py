"""ViT and DeiT compute what timm computes, and count what the papers count."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer as TimmViT

from vitcore.errors import RequestError
from vitcore.models import DeiT, VisionTransformer, adapt, build, resize_position_embedding
from vitcore.models.block import DropPath
from vitcore.recipe import DeitConfig, VitConfig

TINY: dict[str, Any] = {"width": 48, "depth": 3, "heads": 3}


def timm_twin(model: VisionTransformer) -> torch.nn.Module:
    """timm's model of the same shape with the same weights, loaded strictly."""
    config = model.config
    kind = VisionTransformerDistilled if isinstance(model, DeiT) else TimmViT
    mean = {"class_token": False, "global_pool": "avg", "fc_norm": False} if config.pooling == "mean" else {}
    twin = kind(
        img_size=model.image_size,
        patch_size=config.patch,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        num_classes=model.num_classes,
        **mean,
    )
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def scattered(model: VisionTransformer) -> VisionTransformer:
    """Weights far from their initial values, so that no term hides behind a zero bias or a unit norm."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


@pytest.mark.parametrize(
    ("config", "image_size"),
    [
        (VitConfig(patch=16, **TINY), 64),
        (VitConfig(patch=8, **TINY), 40),
        (VitConfig(patch=8, mlp_ratio=2.5, **TINY), 32),
        (VitConfig(patch=16, pooling="mean", **TINY), 64),
        (DeitConfig(patch=16, **TINY), 64),
        (DeitConfig(patch=8, **TINY), 32),
    ],
)
def test_logits_and_gradients_equal_timms(config: VitConfig, image_size: int) -> None:
    model = scattered(build(config, num_classes=7, image_size=image_size))
    twin = timm_twin(model)
    images = torch.randn(3, 3, image_size, image_size)
    logits, expected = model(images), twin(images)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    logits.square().sum().backward()
    expected.square().sum().backward()
    theirs = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-4, rtol=1e-4, msg=name)


def test_full_size_small_and_deit_small_equal_timms() -> None:
    shape = {"width": 384, "depth": 12, "heads": 6}
    for config in (VitConfig(**shape), DeitConfig(**shape)):
        model = build(config, num_classes=1000, image_size=224).eval()
        images = torch.randn(1, 3, 224, 224)
        with torch.no_grad():
            torch.testing.assert_close(model(images), timm_twin(model)(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "image_size", "parameters"),
    [
        (VitConfig(width=192, depth=12, heads=3), 224, 5_717_416),
        (VitConfig(width=384, depth=12, heads=6), 224, 22_050_664),
        (VitConfig(width=768, depth=12, heads=12), 224, 86_567_656),
        (VitConfig(width=768, depth=12, heads=12, patch=32), 224, 88_224_232),
        (VitConfig(width=1024, depth=24, heads=16), 224, 304_326_632),
        (DeitConfig(width=192, depth=12, heads=3), 224, 5_910_800),
        (DeitConfig(width=384, depth=12, heads=6), 224, 22_436_432),
        (DeitConfig(width=768, depth=12, heads=12), 224, 87_338_192),
    ],
)
def test_parameter_counts_are_those_published(config: VitConfig, image_size: int, parameters: int) -> None:
    with torch.device("meta"):
        model = build(config, num_classes=1000, image_size=image_size)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_published_counts_are_timms() -> None:
    names = {"vit_base_patch16_224": 86_567_656, "deit_small_distilled_patch16_224": 22_436_432}
    for name, expected in names.items():
        with torch.device("meta"):
            model = timm.create_model(name)
        assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("grid", [3, 7, 11])
def test_position_embedding_is_resized_as_timms(grid: int) -> None:
    positions = torch.randn(1, 2 + 49, 24)
    expected = resample_abs_pos_embed(positions, [grid, grid], num_prefix_tokens=2)
    torch.testing.assert_close(resize_position_embedding(positions, grid, prefix=2), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("config", [VitConfig(patch=8, **TINY), DeitConfig(patch=8, **TINY)])
def test_attention_rows_sum_to_one_and_reproduce_the_forward_pass(config: VitConfig) -> None:
    model = scattered(build(config, num_classes=4, image_size=32))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        maps = model.attention(images)
        tokens = model.embed(images)
        for block, weights in zip(model.blocks, maps, strict=True):
            assert weights.shape == (2, 3, 16 + model.num_prefix, 16 + model.num_prefix)
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
            normed = block.norm1(tokens)
            mixed = (weights @ block.attn.split(normed)[2]).transpose(1, 2).flatten(2)
            torch.testing.assert_close(block.attn.proj(mixed), block.attn(normed), atol=1e-5, rtol=1e-5)
            tokens = block(tokens)
        torch.testing.assert_close(model.norm(tokens), model.forward_features(images))
        if not isinstance(model, DeiT):
            torch.testing.assert_close(model.head(model.pool(model.norm(tokens))), model(images), atol=1e-5, rtol=1e-5)


def test_deit_averages_its_heads_and_shows_both() -> None:
    model = build(DeitConfig(patch=8, **TINY), num_classes=5, image_size=32)
    assert isinstance(model, DeiT)
    images = torch.randn(2, 3, 32, 32)
    for mode in (True, False):
        model.train(mode)
        class_logits, distill_logits = model.heads(images)
        assert class_logits.shape == distill_logits.shape == (2, 5)
        assert not torch.equal(class_logits, distill_logits)
        torch.testing.assert_close(model(images), (class_logits + distill_logits) / 2)
    features = model.forward_features(images)
    assert features.shape == (2, 16 + 2, 48)
    torch.testing.assert_close(model.head_dist(features[:, 1]), model.heads(images)[1], atol=1e-6, rtol=1e-5)


def test_drop_path_keeps_the_mean_and_grows_with_depth() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25)
    dropped = layer(torch.ones(20_000, 2, 3))
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))  # an image's branch goes as a whole
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    untouched = torch.ones(2, 2, 3)
    assert layer.eval()(untouched) is untouched
    model = build(VitConfig(patch=8, drop_path=0.2, **TINY), num_classes=2, image_size=32)
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0, 0.1, 0.2])


def test_dropout_and_drop_path_act_in_training_only() -> None:
    model = build(VitConfig(patch=8, drop_path=0.5, dropout=0.3, **TINY), num_classes=2, image_size=32)
    images = torch.randn(4, 3, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("config", [VitConfig(patch=8, **TINY), DeitConfig(patch=8, **TINY)])
def test_layers_are_numbered_from_stem_to_head(config: VitConfig) -> None:
    model = build(config, num_classes=2, image_size=32)
    numbers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert {numbers[name] for name in numbers if name.startswith(("patch_embed", "cls", "dist", "pos"))} == {0}
    assert [numbers[f"blocks.{i}.mlp.fc1.weight"] for i in range(3)] == [1, 2, 3]
    assert {numbers[name] for name in model.head_parameters()} == {model.num_layers} == {numbers["norm.weight"]} == {4}
    for unknown in ("head.scale", "position"):
        with pytest.raises((KeyError, AttributeError)):
            model.layer_of(unknown)


def test_undecayed_are_positions_and_tokens() -> None:
    deit = build(DeitConfig(patch=8, **TINY), num_classes=2, image_size=32)
    assert deit.undecayed() == {"pos_embed", "cls_token", "dist_token"}
    mean = build(VitConfig(patch=8, pooling="mean", **TINY), num_classes=2, image_size=32)
    assert mean.undecayed() == {"pos_embed"}


def test_initial_weights_have_the_prescribed_spread() -> None:
    torch.manual_seed(0)
    model = build(DeitConfig(patch=16, width=192, depth=2, heads=3), num_classes=100, image_size=64)
    assert isinstance(model, DeiT)
    for weight in (model.blocks[0].attn.qkv.weight, model.head_dist.weight, model.pos_embed):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.patch_embed.proj.weight.std().item() == pytest.approx(768**-0.5, rel=0.1)
    assert all(not value.any() for name, value in model.named_parameters() if name.endswith("bias"))


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RequestError, match="take 96 or 112"):
        build(VitConfig(patch=16, **TINY), num_classes=2, image_size=100)
    model = build(VitConfig(patch=16, **TINY), num_classes=2, image_size=64)
    with pytest.raises(RequestError, match="96 x 96"):
        model(torch.zeros(1, 3, 96, 96))


@pytest.mark.parametrize("kind", [VitConfig, DeitConfig])
def test_adapt_to_a_resolution_equals_timm(kind: type[VitConfig]) -> None:
    model = scattered(build(kind(patch=8, **TINY), num_classes=3, image_size=32))
    larger = adapt(model, image_size=48)
    twin = timm_twin(model)
    twin.set_input_size(img_size=(48, 48))
    if isinstance(model, DeiT):  # timm resizes with the prefix its class says
        assert twin.pos_embed.shape == larger.pos_embed.shape
    images = torch.randn(2, 3, 48, 48)
    assert not larger.training
    torch.testing.assert_close(larger(images), twin(images), atol=1e-5, rtol=0)


def test_adapt_gives_a_zero_head_only_where_the_classes_differ() -> None:
    model = scattered(build(DeitConfig(patch=8, **TINY), num_classes=3, image_size=32))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(adapt(model)(images), model(images))
    for other in (adapt(model, num_classes=5), adapt(model, keep_head=False)):
        assert not other(images).any()
        assert torch.equal(other.forward_features(images), model.forward_features(images))
    slower = adapt(model, drop_path=0.3)
    assert slower.config.drop_path == 0.3
    assert slower.blocks[-1].drop_path.rate == pytest.approx(0.3)
    with torch.no_grad():
        adapt(model).pos_embed.zero_()
    assert model.pos_embed.any()  # nothing is shared


def test_reset_head_starts_at_zero() -> None:
    model = build(DeitConfig(patch=8, **TINY), num_classes=3, image_size=32)
    model.reset_head(6)
    assert model.num_classes == 6
    assert model(torch.randn(1, 3, 32, 32)).tolist() == [[0.0] * 6]
