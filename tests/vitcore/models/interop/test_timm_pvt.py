"""PVT v2 of timm and ours: nothing is lost on the way, and what computes otherwise is refused by name."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import nn

from vitcore.errors import RequestError
from vitcore.models import build
from vitcore.models.interop.timm_pvt import from_timm_pvt, to_timm_pvt
from vitcore.models.pvt import Pvt
from vitcore.recipe import PvtConfig

TINY: dict[str, Any] = {
    "embed_dims": (16, 32, 40, 64),
    "depths": (1, 2, 1, 1),
    "num_heads": (1, 2, 5, 8),
    "mlp_ratios": (4, 2, 2, 1),
    "num_classes": 5,
}


def theirs(**options: Any) -> PyramidVisionTransformerV2:
    """A timm PVT v2 with no weight at its initial value."""
    torch.manual_seed(0)
    model = PyramidVisionTransformerV2(**{**TINY, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


@pytest.mark.parametrize("options", [{}, {"linear": True}, {"sr_ratios": (4, 1, 2, 1)}, {"num_classes": 0}])
def test_there_and_back_is_bit_equal(options: dict[str, Any]) -> None:
    source = theirs(**options)
    images = torch.randn(2, 3, 64, 64)
    for given in (source, source.state_dict()):
        model = from_timm_pvt(given, image_size=64).eval()
        assert model.image_size == 64
        torch.testing.assert_close(model(images), source(images), atol=1e-5, rtol=0)
        config, state = to_timm_pvt(model)
        assert all(torch.equal(state[name], tensor) for name, tensor in source.state_dict().items())
        again = PyramidVisionTransformerV2(num_classes=config["num_classes"], **config["model_args"]).eval()
        again.load_state_dict(state)
        assert torch.equal(again(images), source(images))


@pytest.mark.parametrize("linear", [False, True])
def test_timm_loads_it_from_its_files(linear: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = PvtConfig(
        widths=(32, 64, 80, 96),
        depths=(2, 2, 2, 2),
        linear=linear,
        dropout=0.1,
        drop_path=0.2,
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
    )
    model = build(config, num_classes=3, image_size=64).eval()
    assert isinstance(model, Pvt)
    foreign = to_timm_pvt(model)
    assert foreign.config["architecture"] == "pvt_v2_b0"
    (tmp_path / "config.json").write_text(json.dumps(foreign.config))
    save_file(foreign.state, tmp_path / "model.safetensors")
    twin = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(twin(images), model(images), atol=1e-5, rtol=0)
    back = from_timm_pvt(twin)
    assert back.config == config
    assert (back.num_classes, back.image_size) == (3, 64)
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_the_architecture_is_the_published_one() -> None:
    for name in ("pvt_v2_b0", "pvt_v2_b1", "pvt_v2_b2", "pvt_v2_b2_li"):
        with torch.device("meta"):
            described = timm.create_model(name)
            model = build(_config_of(described), num_classes=1000, image_size=224)
        assert isinstance(model, Pvt)
        assert to_timm_pvt(model).config["architecture"] == name


def _config_of(described: Any) -> PvtConfig:
    stages = described.stages
    return PvtConfig(
        widths=tuple(stage.norm.normalized_shape[0] for stage in stages),
        depths=tuple(len(stage.blocks) for stage in stages),
        linear=stages[0].blocks[0].attn.pool is not None,
    )


def test_what_the_weights_do_not_tell_comes_with_the_model() -> None:
    source = theirs(num_heads=(2, 4, 4, 4), proj_drop_rate=0.2, drop_path_rate=0.3)
    source.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "input_size": (3, 96, 96)}
    images = torch.randn(1, 3, 96, 96)
    for model in (from_timm_pvt(source), from_timm_pvt(source.state_dict(), like=source)):
        assert (model.config.mean, model.config.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        assert (model.config.dropout, model.config.drop_path) == (0.2, 0.3)
        assert model.config.heads == (2, 4, 4, 4)
        assert model.image_size == 96
        torch.testing.assert_close(model.eval()(images), source(images), atol=1e-5, rtol=0)
    assert from_timm_pvt(source.state_dict(), heads=(2, 4, 4, 4)).config.heads == (2, 4, 4, 4)
    alone = from_timm_pvt(source.state_dict())
    assert (alone.config.heads, alone.config.mean, alone.image_size) == ((1, 2, 5, 8), (0.5, 0.5, 0.5), 224)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"norm_layer": partial(nn.LayerNorm, eps=1e-5)}, "has epsilon 1e-05; only 1e-06"),
        ({"norm_layer": nn.RMSNorm}, "norm1 is a RMSNorm"),
        ({"global_pool": ""}, "global_pool=''"),
        ({"drop_rate": 0.1}, "head_drop has the rate 0.1"),
        ({"attn_drop_rate": 0.1}, "attn_drop has the rate 0.1"),
        ({"qkv_bias": False}, "missing .*attn.q.bias"),
        ({"mlp_ratios": (2.5, 2, 2, 1)}, "40 wide at 16 channels"),
        (
            {"depths": (1, 1), "embed_dims": (16, 32), "num_heads": (1, 2), "mlp_ratios": (2, 2), "sr_ratios": (2, 1)},
            "2 stages",
        ),
    ],
)
def test_what_computes_otherwise_is_refused_by_name(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        from_timm_pvt(theirs(**options))


def test_another_activation_is_refused() -> None:
    for activation, sentence in (
        (nn.SiLU(), "mlp.act is a SiLU"),
        (nn.GELU(approximate="tanh"), "only the exact GELU"),
    ):
        source = theirs()
        source.stages[1].blocks[0].mlp.act = activation
        with pytest.raises(RequestError, match=sentence):
            from_timm_pvt(source)


def test_another_architecture_is_refused() -> None:
    with pytest.raises(RequestError, match="model is a VisionTransformer"):
        from_timm_pvt(timm.models.vision_transformer.VisionTransformer(embed_dim=24, depth=1, num_heads=2))


def test_weights_that_do_not_fit_are_refused_by_name() -> None:
    state = theirs().state_dict()
    five = {f"stages.4{name.removeprefix('stages.3')}": tensor for name, tensor in state.items() if "stages.3" in name}
    for changed, sentence in (
        ({**state, "gate": torch.zeros(1)}, "unknown gate"),
        ({**state, **five}, "unknown stages.4"),
        (
            {name: tensor for name, tensor in state.items() if name != "stages.1.norm.bias"},
            "missing stages.1.norm.bias",
        ),
        ({name: tensor for name, tensor in state.items() if "stages.3" not in name}, "missing stages.3.blocks.0.mlp"),
        ({**state, "patch_embed.proj.weight": torch.zeros(16, 1, 7, 7)}, "patch_embed.proj.weight is"),
        ({**state, "stages.0.blocks.999999999.norm1.bias": torch.zeros(16)}, "unknown stages.0.blocks.999999999"),
    ):
        with pytest.raises(RequestError, match=sentence):
            from_timm_pvt(changed)
    with pytest.raises(RequestError, match="not divisible by 3 heads"):
        from_timm_pvt(state, heads=(3, 2, 5, 8))
