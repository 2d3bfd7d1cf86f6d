"""timm's ViT and DeiT as ours and ours as timm's: every option computes the same, in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from timm.layers import LayerNorm
from torch import nn

from vitcore.errors import RequestError
from vitcore.models import DeiT, VisionTransformer, adapt, build
from vitcore.models.interop.timm import check_computation, from_timm, to_timm
from vitcore.recipe import CnnConfig, DeitConfig, VitConfig

SHAPE: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
OURS: dict[str, Any] = {"patch": 8, "width": 32, "depth": 2, "heads": 2}
PLAIN, CLIP, DEIT = "vit_base_patch16_224", "vit_base_patch16_clip_224", "deit_base_distilled_patch16_224"

OPTIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain": (PLAIN, {}, {}),
    "mlp ratio": (PLAIN, {"mlp_ratio": 2.5}, {"mlp_ratio": 2.5}),
    "mean": (
        PLAIN,
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"pooling": "mean"},
    ),
    "mean of a model with a class token": (
        PLAIN,
        {"global_pool": "avg", "fc_norm": False},
        {"pooling": "mean", "class_token": True},
    ),
    "norm after the mean": (
        PLAIN,
        {"global_pool": "avg"},
        {"pooling": "mean", "class_token": True, "norm_after_pool": True},
    ),
    "norm after the class token": (PLAIN, {"fc_norm": True}, {"norm_after_pool": True}),
    "attention pooling": (
        PLAIN,
        {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh", "mlp_ratio": 3.7},
        {"pooling": "map", "activation": "gelu_tanh", "mlp_ratio": 118 / 32},
    ),
    "attention pooling beside a class token": (
        PLAIN,
        {"global_pool": "map", "reg_tokens": 1, "fc_norm": True},
        {"pooling": "map", "class_token": True, "registers": 1, "norm_after_pool": True},
    ),
    "registers": (PLAIN, {"reg_tokens": 4}, {"registers": 4}),
    "registers without class token": (
        PLAIN,
        {"reg_tokens": 3, "class_token": False, "global_pool": "avg", "fc_norm": False},
        {"registers": 3, "pooling": "mean"},
    ),
    "prefix without positions": (
        PLAIN,
        {"reg_tokens": 4, "no_embed_class": True},
        {"registers": 4, "embed_prefix": False},
    ),
    "layer scale": (PLAIN, {"init_values": 0.1}, {"layer_scale": 0.1}),
    "qk norm": (PLAIN, {"qk_norm": True}, {"qk_norm": True}),
    "pre-norm": (PLAIN, {"pre_norm": True}, {"pre_norm": True, "patch_bias": False}),
    "clip": (
        CLIP,
        {"act_layer": "quick_gelu"},
        {"pre_norm": True, "patch_bias": False, "norm_eps": 1e-5, "activation": "quick_gelu"},
    ),
    "another epsilon alone": (CLIP, {"pre_norm": False}, {"norm_eps": 1e-5}),
    "no head": (PLAIN, {"num_classes": 0}, {}),
    "rates": (
        PLAIN,
        {"pos_drop_rate": 0.1, "proj_drop_rate": 0.1, "drop_path_rate": 0.2},
        {"dropout": 0.1, "drop_path": 0.2},
    ),
    "everything": (
        CLIP,
        {
            "reg_tokens": 2,
            "no_embed_class": True,
            "init_values": 0.2,
            "qk_norm": True,
            "global_pool": "avg",
            "act_layer": "gelu_tanh",
        },
        {
            "registers": 2,
            "embed_prefix": False,
            "layer_scale": 0.2,
            "qk_norm": True,
            "pooling": "mean",
            "class_token": True,
            "norm_after_pool": True,
            "activation": "gelu_tanh",
            "pre_norm": True,
            "patch_bias": False,
            "norm_eps": 1e-5,
        },
    ),
    "deit": (DEIT, {}, {}),
    "deit with layer scale": (DEIT, {"init_values": 0.1, "act_layer": "gelu_tanh", "qk_norm": True}, {}),
}


def theirs_of(name: str, **options: Any) -> nn.Module:
    """timm's model with weights so far from the initial ones that no term hides behind a zero or a one."""
    model = timm.create_model(name, **{**SHAPE, **options}).eval()
    return scattered(model)


def scattered(model: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def images_of(size: int = 32) -> torch.Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))


def assert_same_tensors(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("case", OPTIONS)
def test_every_option_is_read_computed_and_written(case: str) -> None:
    name, arguments, fields = OPTIONS[case]
    theirs, images = theirs_of(name, **arguments), images_of()
    ours = from_timm(theirs).eval()
    if fields or case == "plain":
        assert ours.config == VitConfig(**{**OURS, **_statistics(theirs), **fields})
    assert type(ours) is (DeiT if name == DEIT else VisionTransformer)
    assert_same_tensors(ours.state_dict(), theirs.state_dict())
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(ours(images), expected, atol=1e-5, rtol=0)
        assert expected.std() > 0.01  # the comparison means something

    written = to_timm(ours)
    config = json.loads(json.dumps(written.config))
    back = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"])
    back.load_state_dict(written.state, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(back.eval()(images), expected, atol=0, rtol=0)
    assert_same_tensors(written.state, theirs.state_dict())
    assert from_timm(back).config.model_copy(update=_statistics(theirs)) == ours.config


@pytest.mark.parametrize("case", OPTIONS)
def test_a_state_dict_needs_a_description_at_most(case: str) -> None:
    name, arguments, _ = OPTIONS[case]
    theirs = theirs_of(name, **arguments)
    with torch.device("meta"):
        like = timm.create_model(name, **{**SHAPE, **arguments})
    assert from_timm(theirs.state_dict(), like=like).config == from_timm(theirs).config


def test_a_state_dict_alone_is_read_as_the_plain_model_it_fits() -> None:
    images = images_of()
    probed = {"global_pool": "map", "class_token": False}
    for arguments in ({}, {"qk_norm": True}, {"reg_tokens": 4, "no_embed_class": True}, probed, {"global_pool": "avg"}):
        theirs = theirs_of(PLAIN, **arguments)
        heads = None if arguments.get("qk_norm") else 2
        ours = from_timm(theirs.state_dict(), heads=heads).eval()
        with torch.no_grad():
            torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=0)
    assert from_timm(theirs.state_dict()).config.heads == 1  # heads of 64 channels, and never none


def test_a_description_tells_grids_apart_that_shapes_do_not() -> None:
    theirs = theirs_of(PLAIN, img_size=24, reg_tokens=4, no_embed_class=True)
    assert theirs.pos_embed.shape[1] == 3 * 3 == 1 + 4 + 2 * 2  # nine patches without prefix, or four with
    ours, images = from_timm(theirs).eval(), images_of(24)
    assert isinstance(ours, VisionTransformer)
    assert (ours.grid, ours.config.embed_prefix) == (3, False)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=0)


def test_gradients_and_features_equal_timms() -> None:
    theirs = theirs_of(*OPTIONS["everything"][:1], **OPTIONS["everything"][1])
    ours, images = from_timm(theirs).eval(), images_of()
    assert isinstance(ours, VisionTransformer)
    torch.testing.assert_close(ours.forward_features(images), theirs.forward_features(images), atol=1e-5, rtol=1e-5)
    for model in (ours, theirs):
        model(images).square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("case", ["plain", "registers", "prefix without positions", "attention pooling", "deit"])
def test_another_size_equals_timms(case: str) -> None:
    name, arguments, _ = OPTIONS[case]
    theirs = theirs_of(name, **arguments)
    ours, images = from_timm(theirs).eval(), images_of(48)
    assert isinstance(ours, VisionTransformer)
    theirs.set_input_size(img_size=(48, 48))
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(adapt(ours, image_size=48)(images), expected, atol=1e-5, rtol=0)
        ours.allow_any_size()
        torch.testing.assert_close(ours(images), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"qkv_bias": False}, r"missing blocks\.0\.attn\.qkv\.bias"),
        ({"proj_bias": False}, r"missing blocks\.0\.attn\.proj\.bias"),
        ({"scale_attn_norm": True}, r"unknown blocks\.0\.attn\.norm\.weight"),
        ({"scale_mlp_norm": True}, r"unknown blocks\.0\.mlp\.norm\.weight"),
        ({"final_norm": False}, r"missing norm\.weight"),
        ({"embed_norm_layer": LayerNorm}, r"unknown patch_embed\.norm\.weight"),
        ({"in_chans": 1}, r"patch_embed\.proj\.weight is \(32, 1, 8, 8\), expected \(32, 3, 8, 8\)"),
        ({"global_pool": "avgmax"}, "global_pool='avgmax'"),
        ({"global_pool": "prr"}, "global_pool='prr'"),
        ({"global_pool": ""}, "global_pool=''"),
        ({"global_pool": "avg", "pool_include_prefix": True}, "pool_include_prefix"),
        ({"pos_embed": "none"}, "pos_embed='none'"),
        ({"img_size": (32, 64)}, r"img_size=\(32, 64\)"),
        ({"patch_size": (8, 4)}, r"patch_size=\(8, 4\)"),
        ({"patch_drop_rate": 0.5}, r"patch_drop_rate=0\.5"),
        ({"attn_drop_rate": 0.1}, r"attn_drop_rate=0\.1"),
        ({"drop_rate": 0.1}, r"drop_rate=0\.1"),
        ({"proj_drop_rate": 0.1}, r"pos_drop_rate=0 and proj_drop_rate=0\.1 differ"),
        ({"act_layer": "relu"}, "mlp.act is ReLU"),
        ({"norm_layer": "rmsnorm"}, "not all layer norms"),
        ({"attn_layer": "diff"}, "attn_layer=DiffAttention"),
        ({"block_fn": timm.models.vision_transformer.ResPostBlock}, "block_fn=ResPostBlock"),
        ({"block_fn": timm.models.vision_transformer.ParallelScalingBlock}, "block_fn=ParallelScalingBlock"),
        ({"mlp_layer": timm.layers.SwiGLUPacked}, "mlp_layer="),
    ],
)
def test_options_we_have_not_are_named(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        from_timm(timm.create_model(PLAIN, **{**SHAPE, **arguments}))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("resnet18", "ResNet has no counterpart"),
        ("beit_base_patch16_224", "Beit has no counterpart"),
        ("vit_base_resnet26d_224", "stem with .*FeatureListNet"),
        ("vit_srelpos_small_patch16_224", "VisionTransformerRelPos has no counterpart"),
    ],
)
def test_models_we_have_not_are_named(name: str, complaint: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(RequestError, match=complaint):
        check_computation(model)


def test_unknown_missing_and_misshapen_tensors_are_named() -> None:
    state = theirs_of(PLAIN).state_dict()
    with pytest.raises(RequestError, match=r"unknown blocks\.1\.attn\.rel_pos"):
        from_timm({**state, "blocks.1.attn.rel_pos": torch.zeros(2)}, heads=2)
    with pytest.raises(RequestError, match="missing pos_embed"):
        from_timm({name: value for name, value in state.items() if name != "pos_embed"})
    for misshapen in (torch.zeros(5), torch.zeros(1, 0, 32)):
        with pytest.raises(RequestError, match="pos_embed has the shape"):
            from_timm({**state, "pos_embed": misshapen}, heads=2)
    with pytest.raises(RequestError, match=r"missing blocks\.2\.norm1\.weight"):  # and no billion blocks are built
        from_timm({**state, "blocks.999999999.norm1.bias": torch.zeros(32)}, heads=2)
    with pytest.raises(RequestError, match="is no square"):
        from_timm({**state, "pos_embed": torch.zeros(1, 13, 32)}, heads=2)
    with pytest.raises(RequestError, match="not divisible by 5 heads"):
        from_timm(state, heads=5)
    deit = theirs_of(DEIT).state_dict()
    with pytest.raises(RequestError, match="reads neither registers"):
        from_timm({**deit, "reg_token": torch.zeros(1, 1, 32)}, heads=2)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (VitConfig(pre_norm=True, **OURS), "patch bias together with pre_norm"),
        (VitConfig(norm_eps=1e-4, **OURS), r"epsilon 0\.0001"),
        (DeitConfig(norm_eps=1e-5, **OURS), "epsilon 1e-05"),
        (DeitConfig(registers=2, **OURS), "registers in a DeiT"),
        (DeitConfig(embed_prefix=False, **OURS), "without embed_prefix"),
        (DeitConfig(norm_after_pool=True, **OURS), "norm_after_pool in a DeiT"),
        (CnnConfig(name="resnet18"), "no counterpart of a cnn"),
    ],
)
def test_options_timm_has_not_are_named(config: Any, complaint: str) -> None:
    with torch.device("meta"):
        model = build(config, num_classes=3, image_size=32)
    with pytest.raises(RequestError, match=complaint):
        to_timm(model)


def test_what_timm_cannot_say_is_written_as_what_computes_the_same() -> None:
    images = images_of()
    ratio = 1.499999999  # our hidden width of 48, which timm would round down to 47
    for config in (
        VitConfig(patch_bias=False, positions="sincos", **OURS),
        VitConfig(layer_scale=0.0, **OURS),
        VitConfig(mlp_ratio=ratio, **OURS),
    ):
        ours = scattered(build(config, num_classes=5, image_size=32))
        written = to_timm(ours)
        theirs = timm.create_model(written.config["architecture"], num_classes=5, **written.config["model_args"])
        theirs.load_state_dict(written.state, strict=True)
        with torch.no_grad():
            torch.testing.assert_close(theirs.eval()(images), ours(images), atol=1e-5, rtol=0)
            torch.testing.assert_close(from_timm(theirs).eval()(images), ours(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [VitConfig(registers=2, mean=(0.1, 0.2, 0.3), **OURS), DeitConfig(**OURS)])
def test_a_folder_is_what_timms_hub_loads(config: VitConfig, tmp_path: Path) -> None:
    ours = scattered(build(config, num_classes=7, image_size=32))
    written = to_timm(ours)
    (tmp_path / "config.json").write_text(json.dumps(written.config))
    safetensors.torch.save_file(written.state, tmp_path / "model.safetensors")
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(images_of()), ours(images_of()), atol=1e-5, rtol=0)
    data = timm.data.resolve_model_data_config(theirs)
    assert (tuple(data["mean"]), tuple(data["std"])) == (config.mean, config.std)
    assert (tuple(data["input_size"]), data["interpolation"], data["crop_pct"]) == ((3, 32, 32), "bicubic", 0.875)
    assert from_timm(theirs).config == config


def test_mixers_and_pyramids_go_to_their_readers() -> None:
    images = images_of()
    mixer = scattered(timm.models.MlpMixer(img_size=32, patch_size=8, embed_dim=32, num_blocks=2, num_classes=3))
    with torch.device("meta"):
        like = timm.models.MlpMixer(img_size=32, patch_size=8, embed_dim=32, num_blocks=2, num_classes=3)
    for ours in (from_timm(mixer), from_timm(mixer.state_dict()), from_timm(mixer.state_dict(), like=like)):
        torch.testing.assert_close(ours.eval()(images), mixer(images), atol=1e-5, rtol=0)
        assert to_timm(ours).state.keys() == mixer.state_dict().keys()
    pyramid = scattered(timm.create_model("pvt_v2_b0", num_classes=3, num_heads=(1, 1, 1, 1)))
    for ours in (from_timm(pyramid), from_timm(pyramid.state_dict(), like=pyramid)):
        torch.testing.assert_close(ours.eval()(images), pyramid(images), atol=1e-5, rtol=1e-4)
        assert (ours.config.kind, ours.image_size) == ("pvt", 224)
        assert to_timm(ours).state.keys() == pyramid.state_dict().keys()


def _statistics(theirs: Any) -> dict[str, Any]:
    told = theirs.pretrained_cfg
    return {"mean": tuple(told["mean"]), "std": tuple(told["std"])}
