"""Mixers of timm and ours: nothing is lost on the way, and what is no mixer is refused by name."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import GatedMlp, GluMlp
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock
from torch import nn

from vitcore.errors import RequestError
from vitcore.models import build
from vitcore.models.interop.timm_mixer import from_timm_mixer, to_timm_mixer
from vitcore.models.mixer import Mixer
from vitcore.recipe import MixerConfig

TINY: dict[str, Any] = {"img_size": 24, "patch_size": 8, "num_blocks": 2, "embed_dim": 40, "num_classes": 5}


def theirs(**options: Any) -> MlpMixer:
    """A timm mixer with no weight at its initial value."""
    torch.manual_seed(0)
    model = MlpMixer(**{**TINY, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


@pytest.mark.parametrize("options", [{}, {"mlp_ratio": (1.7, 2.1)}, {"num_classes": 0}])
def test_there_and_back_is_bit_equal(options: dict[str, Any]) -> None:
    source = theirs(**options)
    images = torch.randn(2, 3, 24, 24)
    for given in (source, source.state_dict()):
        model = from_timm_mixer(given).eval()
        torch.testing.assert_close(model(images), source(images), atol=1e-5, rtol=0)
        config, state = to_timm_mixer(model)
        assert all(torch.equal(state[name], tensor) for name, tensor in source.state_dict().items())
        json.dumps(config)
        again = MlpMixer(**config["model_args"]).eval()
        again.load_state_dict(state)
        assert torch.equal(again(images), source(images))
        assert "architecture" not in config  # timm names no mixer of this shape


def test_a_published_shape_is_loaded_by_timm_from_its_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = MixerConfig(patch=32, width=512, depth=8, dropout=0.1, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    model = build(config, num_classes=3, image_size=64).eval()
    assert isinstance(model, Mixer)
    foreign = to_timm_mixer(model)
    (tmp_path / "config.json").write_text(json.dumps(foreign.config))
    save_file(foreign.state, tmp_path / "model.safetensors")
    twin = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(twin(images), model(images), atol=1e-5, rtol=0)
    back = from_timm_mixer(twin)
    assert back.config == config
    assert (back.num_classes, back.image_size) == (3, 64)
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_every_hidden_width_survives_timms_rounding() -> None:
    cut = [hidden for hidden in range(1, 200) if int(49 * (hidden / 49)) != hidden]
    assert cut  # where timm's product falls short of the width it came from
    for hidden in cut[:5]:
        config = MixerConfig(patch=8, width=49, depth=1, token_ratio=hidden / 49, channel_ratio=hidden / 49)
        with torch.device("meta"):
            model = build(config, num_classes=2, image_size=16)
            assert isinstance(model, Mixer)
            described, state = to_timm_mixer(model)
            MlpMixer(**described["model_args"]).load_state_dict(state, assign=True)


def test_statistics_and_dropout_come_with_the_model() -> None:
    source = theirs(proj_drop_rate=0.2)
    source.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    like = from_timm_mixer(source.state_dict(), like=source)
    for model in (from_timm_mixer(source), like):
        assert (model.config.mean, model.config.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        assert model.config.dropout == 0.2
    told = from_timm_mixer(source, mean=(0.0, 0.0, 0.0))
    assert (told.config.mean, told.config.std) == ((0.0, 0.0, 0.0), (0.4, 0.5, 0.6))
    assert from_timm_mixer(source.state_dict()).config.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"block_layer": ResBlock, "norm_layer": Affine, "mlp_ratio": 4}, "blocks.0 is a ResBlock"),
        ({"block_layer": SpatialGatingBlock, "mlp_layer": GatedMlp, "mlp_ratio": 4}, "blocks.0 is a SpatialGating"),
        ({"mlp_layer": GluMlp, "mlp_ratio": (1.0, 4.0)}, "mlp_tokens is a GluMlp"),
        ({"norm_layer": Affine}, "norm1 is a Affine"),
        ({"act_layer": nn.SiLU}, "mlp_tokens.act is a SiLU"),
        ({"act_layer": partial(nn.GELU, approximate="tanh")}, "only the exact GELU"),
        ({"norm_layer": partial(nn.LayerNorm, eps=1e-5)}, "has epsilon 1e-05"),
        ({"global_pool": ""}, "global_pool=''"),
        ({"drop_rate": 0.1}, "head_drop has the rate 0.1"),
        ({"drop_path_rate": 0.1}, "drop_path_rate=0.1"),
        ({"stem_norm": True}, r"unknown stem.norm.weight, stem.norm.bias"),
    ],
)
def test_what_computes_otherwise_is_refused_by_name(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        from_timm_mixer(theirs(**options))


def test_another_architecture_is_refused() -> None:
    with pytest.raises(RequestError, match="model is a VisionTransformer"):
        from_timm_mixer(timm.models.vision_transformer.VisionTransformer(embed_dim=24, depth=1, num_heads=2))


def test_weights_that_do_not_fit_are_refused_by_name() -> None:
    state = theirs().state_dict()
    for changed, sentence in (
        ({**state, "blocks.0.gate": torch.zeros(1)}, "unknown blocks.0.gate"),
        ({name: tensor for name, tensor in state.items() if name != "norm.bias"}, "missing norm.bias"),
        ({name: tensor for name, tensor in state.items() if name != "stem.proj.weight"}, "missing stem.proj.weight"),
        ({**state, "stem.proj.weight": torch.zeros(40, 1, 8, 8)}, "1 channels"),
        ({**state, "stem.proj.weight": torch.zeros(40, 3, 8, 4)}, "8 x 4 pixels"),
        ({**state, "blocks.0.mlp_tokens.fc1.weight": torch.zeros(20, 8)}, "8 patches"),
        ({**state, "blocks.999999999.norm1.weight": torch.zeros(40)}, "unknown blocks.999999999.norm1.weight"),
    ):
        with pytest.raises(RequestError, match=sentence):
            from_timm_mixer(changed)
