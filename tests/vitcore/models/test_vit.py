"""ViT and DeiT compute what timm computes, and count what the papers count."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer as TimmViT

from vitcore.errors import RequestError
from vitcore.models import DeiT, VisionTransformer, adapt, build, resize_position_embedding
from vitcore.models.block import Block, DropPath, hidden_width
from vitcore.models.interop.timm import to_timm
from vitcore.recipe import DeitConfig, VitConfig
from vitcore.recipes.vit import variant

TINY: dict[str, Any] = {"width": 48, "depth": 3, "heads": 3}
EVERYTHING: dict[str, Any] = {
    "registers": 2,
    "embed_prefix": False,
    "layer_scale": 0.3,
    "qk_norm": True,
    "pre_norm": True,
    "patch_bias": False,
    "activation": "quick_gelu",
    "norm_eps": 1e-5,
}
OPTIONS = [
    VitConfig(patch=8, **TINY),
    VitConfig(patch=8, registers=3, **TINY),
    VitConfig(patch=8, registers=3, pooling="mean", **TINY),
    VitConfig(patch=8, pooling="mean", class_token=True, norm_after_pool=True, **TINY),
    VitConfig(patch=8, pooling="map", activation="gelu_tanh", **TINY),
    VitConfig(patch=8, positions="sincos", **TINY),
    VitConfig(patch=8, positions="sincos", pooling="map", class_token=True, **EVERYTHING, **TINY),
    DeitConfig(patch=8, **TINY),
    DeitConfig(patch=8, norm_after_pool=True, **EVERYTHING, **TINY),
]


def timm_twin(model: VisionTransformer) -> Any:
    """timm's model of the same shape with the same weights, loaded strictly."""
    written = to_timm(model)
    twin = timm.create_model(
        written.config["architecture"], num_classes=model.num_classes, **written.config["model_args"]
    )
    assert isinstance(twin, VisionTransformerDistilled if isinstance(model, DeiT) else TimmViT)
    twin.load_state_dict(model.state_dict(), strict=True)
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
        (VitConfig(patch=8, pooling="map", positions="sincos", class_token=True, **EVERYTHING, **TINY), 32),
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
        if parameter.requires_grad:
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


@pytest.mark.parametrize("config", OPTIONS)
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
        torch.testing.assert_close(model.norm(tokens), model.forward_features(images), atol=1e-5, rtol=1e-5)
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


@pytest.mark.parametrize("config", OPTIONS)
def test_layers_are_numbered_from_stem_to_head(config: VitConfig) -> None:
    model = build(config, num_classes=2, image_size=32)
    numbers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    first = ("patch_embed", "cls", "dist", "reg", "pos", "norm_pre")
    assert {numbers[name] for name in numbers if name.startswith(first)} == {0}
    assert [numbers[f"blocks.{i}.mlp.fc1.weight"] for i in range(3)] == [1, 2, 3]
    last = ("norm.", "fc_norm", "attn_pool", "head")
    assert {numbers[name] for name in numbers if name.startswith(last)} == {model.num_layers} == {4}
    assert all(name.startswith((*first, *last, "blocks.")) for name in numbers)
    for unknown in ("head.scale", "position"):
        with pytest.raises((KeyError, AttributeError)):
            model.layer_of(unknown)


def test_undecayed_are_positions_and_tokens() -> None:
    deit = build(DeitConfig(patch=8, **TINY), num_classes=2, image_size=32)
    assert deit.undecayed() == {"pos_embed", "cls_token", "dist_token"}
    mean = build(VitConfig(patch=8, pooling="mean", **TINY), num_classes=2, image_size=32)
    assert mean.undecayed() == {"pos_embed"}
    probing = build(VitConfig(patch=8, pooling="map", registers=1, **TINY), num_classes=2, image_size=32)
    assert probing.undecayed() == {"pos_embed", "reg_token", "attn_pool.latent"}


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


@pytest.mark.parametrize(
    "config", [VitConfig(patch=8, **TINY), VitConfig(patch=8, registers=2, embed_prefix=False, **TINY)]
)
def test_adapt_to_a_resolution_equals_timm(config: VitConfig) -> None:
    model = scattered(build(config, num_classes=3, image_size=32))
    twin = timm_twin(model)
    twin.set_input_size(img_size=(48, 48))
    images = torch.randn(2, 3, 48, 48)
    larger = adapt(model, image_size=48)
    assert not larger.training
    torch.testing.assert_close(larger(images), twin(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", OPTIONS)
def test_any_size_equals_the_adapted_model(config: VitConfig) -> None:
    model = scattered(build(config, num_classes=3, image_size=32))
    images = torch.randn(2, 3, 48, 48)
    larger = adapt(model, image_size=48)
    assert larger.config == config
    assert larger.pos_embed.shape[1] == 36 + (model.num_prefix if config.embed_prefix else 0)
    assert larger.pos_embed.requires_grad is (config.positions == "learned")
    model.allow_any_size()
    torch.testing.assert_close(model(images), larger(images), atol=1e-6, rtol=0)
    native = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(native), adapt(model)(native), atol=0, rtol=0)
    with pytest.raises(RequestError, match="32 x 40"):
        model(torch.zeros(1, 3, 32, 40))


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


@pytest.mark.parametrize("config", OPTIONS)
def test_only_what_the_head_reads_leaves_the_last_block(config: VitConfig) -> None:
    model = scattered(build(config, num_classes=4, image_size=32))
    assert isinstance(model, VisionTransformer)
    images, seen = torch.randn(2, 3, 32, 32), []
    model.blocks[-1].register_forward_hook(lambda _module, _inputs, tokens: seen.append(tokens.shape[1]))
    logits = model(images)
    assert seen == [model.num_read or 16 + model.num_prefix]
    tokens = model.encode(model.embed(images))
    if isinstance(model, DeiT):
        normed = model.fc_norm(tokens)
        expected = (model.head(normed[:, 0]) + model.head_dist(normed[:, 1])) / 2
    else:
        expected = model.head(model.pool(tokens))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    features = adapt(model, num_classes=0)
    assert features.head_parameters() == ()
    assert features(images).shape == (2, 48)
    if not isinstance(model, DeiT):
        torch.testing.assert_close(features(images), model.pool(tokens), atol=1e-5, rtol=1e-5)


def test_a_choice_of_patches_can_be_encoded() -> None:
    config = VitConfig(patch=8, positions="sincos", registers=1, **TINY)
    model = scattered(build(config, num_classes=0, image_size=32))
    assert isinstance(model, VisionTransformer)
    tokens = model.embed(torch.randn(2, 3, 32, 32))
    assert tokens.shape == (2, model.num_prefix + 16, 48)
    kept = torch.cat([tokens[:, : model.num_prefix], tokens[:, [5, 2, 11]]], dim=1)
    encoded = model.encode(kept)
    assert encoded.shape == (2, 2 + 3, 48)
    reordered = model.encode(kept[:, [0, 1, 4, 3, 2]])
    torch.testing.assert_close(reordered[:, [0, 1, 4, 3, 2]], encoded, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.encode(kept, first=1), encoded[:, :1], atol=1e-5, rtol=1e-5)


def test_fixed_positions_are_sines_and_cosines_of_both_axes() -> None:
    model = build(VitConfig(patch=8, positions="sincos", registers=1, **TINY), num_classes=2, image_size=24)
    assert not model.pos_embed.requires_grad
    assert "pos_embed" in model.state_dict()
    assert not model.pos_embed[0, :2].any()  # class token and register
    for row in range(3):
        for column in range(3):
            for channel in range(48):
                axis, wave, frequency = channel // 24, channel % 24 // 12, channel % 12
                angle = (column, row)[axis] / 10_000 ** (frequency / 12)
                expected = (math.sin, math.cos)[wave](angle)
                found = model.pos_embed[0, 2 + 3 * row + column, channel].item()
                assert found == pytest.approx(expected, abs=1e-6)


def test_fixed_positions_do_not_learn_and_survive_the_weights() -> None:
    model = build(VitConfig(patch=8, positions="sincos", **TINY), num_classes=2, image_size=32).train()
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == ["pos_embed"]
    with torch.no_grad():
        model.pos_embed.add_(1)
    assert torch.equal(adapt(model).pos_embed, model.pos_embed)  # what the weights say, not what the formula says


def test_layer_scale_starts_at_what_is_asked_for() -> None:
    model = build(VitConfig(patch=8, layer_scale=1e-4, **TINY), num_classes=2, image_size=32)
    assert {name for name, value in model.named_parameters() if (value == 1e-4).all()} == {
        f"blocks.{block}.ls{branch}.gamma" for block in range(3) for branch in (1, 2)
    }
    tokens = model.embed(torch.randn(1, 3, 32, 32))
    moved = (model.blocks[0](tokens) - tokens).abs().max().item()
    assert 0 < moved < 1e-2


def test_another_pooling_keeps_the_tokens() -> None:
    model = scattered(build(VitConfig(patch=8, registers=2, **TINY), num_classes=2, image_size=32))
    assert isinstance(model, VisionTransformer)
    images = torch.randn(2, 3, 32, 32)
    mean = adapt(model, pooling="mean")
    assert (mean.config.pooling, mean.config.has_class_token) == ("mean", True)
    assert torch.equal(mean.forward_features(images), model.forward_features(images))
    expected = model.head(model.forward_features(images)[:, 3:].mean(dim=1))
    torch.testing.assert_close(mean(images), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(adapt(mean, pooling="token")(images), model(images), atol=1e-5, rtol=1e-5)
    assert adapt(model, pooling="token").config == model.config
    without = build(VitConfig(patch=8, pooling="mean", **TINY), num_classes=2, image_size=32)
    deit = build(DeitConfig(patch=8, **TINY), num_classes=2, image_size=32)
    for of, pooling, complaint in (
        (model, "map", "weights of its own"),
        (without, "token", "reads a class token"),
        (deit, "mean", "pooling: Input should be 'token'"),
    ):
        with pytest.raises(RequestError, match=complaint):
            adapt(of, pooling=pooling)


def test_causal_attention_sees_only_what_came_before() -> None:
    block = Block(48, 3, causal=True, activation="quick_gelu", norm_eps=1e-5, layer_scale=0.5, qk_norm=True)
    tokens = torch.randn(2, 6, 48)
    changed = tokens.clone()
    changed[:, 4:] += 1
    with torch.no_grad():
        assert torch.equal(block(tokens)[:, :4], block(changed)[:, :4])
        assert not torch.equal(block(tokens)[:, 4:], block(changed)[:, 4:])
        torch.testing.assert_close(block(tokens, 3), block(tokens)[:, :3], atol=1e-6, rtol=1e-5)
        weights, normed = block.attn.weights(tokens), block.attn.split(tokens)
        assert not weights.triu(1).any()
        mixed = (weights @ normed[2]).transpose(1, 2).flatten(2)
        torch.testing.assert_close(block.attn.proj(mixed), block.attn(tokens), atol=1e-6, rtol=1e-5)


def test_hidden_widths_survive_a_ratio_read_off_shapes() -> None:
    for width in range(1, 200):
        for hidden in range(1, 500):
            assert hidden_width(width, hidden / width) == hidden
    assert hidden_width(33, 2.5) == 82  # rounded down, as timm


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("Ti/16", "vit_tiny_patch16_224"),
        ("S/16", "vit_small_patch16_224"),
        ("S/8", "vit_small_patch8_224"),
        ("S/32", "vit_small_patch32_224"),
        ("B/8", "vit_base_patch8_224"),
        ("B/16", "vit_base_patch16_224"),
        ("B/32", "vit_base_patch32_224"),
        ("L/14", "vit_large_patch14_224"),
        ("L/16", "vit_large_patch16_224"),
        ("L/32", "vit_large_patch32_224"),
        ("H/14", "vit_huge_patch14_224"),
        ("g/14", "vit_giant_patch14_224"),
        ("G/14", "vit_gigantic_patch14_224"),
    ],
)
def test_variants_are_timms(name: str, theirs: str) -> None:
    with torch.device("meta"):
        model = build(variant(name), num_classes=1000, image_size=224)
        twin = timm.create_model(theirs, num_classes=1000)
    shapes, expected = ({key: value.shape for key, value in m.state_dict().items()} for m in (model, twin))
    assert shapes == expected
    assert model.config.heads == twin.blocks[0].attn.num_heads


def test_a_name_that_is_no_variant_says_what_is() -> None:
    for name in ("B16", "XL/16", "B/0", "b/16"):
        with pytest.raises(RequestError, match="Ti, S, B, L, H, g, G"):
            variant(name)
