"""torchvision's ViT as ours and ours as torchvision's: the same logits, the same tensors."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.vision_transformer import ConvStemConfig
from torchvision.models.vision_transformer import VisionTransformer as Theirs

from vitcore.errors import RequestError
from vitcore.models import build
from vitcore.models.interop.torchvision import from_torchvision, to_torchvision
from vitcore.recipe import DeitConfig, VitConfig

SHAPE: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 32,
    "mlp_dim": 80,
    "num_classes": 5,
}
OURS: dict[str, Any] = {"patch": 8, "width": 32, "depth": 2, "heads": 2, "mlp_ratio": 2.5}


def scattered(model: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ({}, {}),
        ({"dropout": 0.1}, {"dropout": 0.1}),
        ({"norm_layer": partial(nn.LayerNorm, eps=1e-3)}, {"norm_eps": 1e-3}),
    ],
)
def test_theirs_becomes_ours_and_theirs_again(arguments: dict[str, Any], fields: dict[str, Any]) -> None:
    theirs, images = scattered(Theirs(**SHAPE, **arguments)), torch.randn(3, 3, 32, 32)
    ours = from_torchvision(theirs, mean=(0.1, 0.2, 0.3)).eval()
    assert ours.config == VitConfig(mean=(0.1, 0.2, 0.3), **OURS, **fields)
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(ours(images), expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.01
    if "norm_eps" in fields:
        with pytest.raises(RequestError, match=r"epsilon 0\.001"):
            to_torchvision(ours)
        return
    written = to_torchvision(ours)
    config = json.loads(json.dumps(written.config))
    back = Theirs(**config["model_args"])
    back.load_state_dict(written.state, strict=True)
    with torch.no_grad():
        assert torch.equal(back.eval()(images), expected)
    for name, value in theirs.state_dict().items():
        assert torch.equal(written.state[name], value), name
    assert config["mean"] == [0.1, 0.2, 0.3]


def test_a_state_dict_is_enough_and_old_files_are_read() -> None:
    theirs, images = scattered(Theirs(**SHAPE)), torch.randn(2, 3, 32, 32)
    state = theirs.state_dict()
    former = {
        re.sub(r"mlp\.0\.", "mlp.linear_1.", re.sub(r"mlp\.3\.", "mlp.linear_2.", n)): v for n, v in state.items()
    }
    assert former.keys() != state.keys()
    with torch.device("meta"):
        like = Theirs(**SHAPE)
    with torch.no_grad():
        for ours in (from_torchvision(state, heads=2), from_torchvision(former, like=like)):
            torch.testing.assert_close(ours.eval()(images), theirs(images), atol=1e-5, rtol=0)
    assert from_torchvision(state).config.heads == 1


@pytest.mark.parametrize("name", ["vit_b_16", "vit_h_14"])
def test_published_models_have_their_heads_and_sizes(name: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name)
    ours = from_torchvision(theirs.state_dict())
    assert (ours.config, ours.image_size, ours.num_classes) == (from_torchvision(theirs).config, 224, 1000)
    assert ours.config.heads == theirs.encoder.layers[0].num_heads
    assert to_torchvision(ours).state.keys() == theirs.state_dict().keys()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"representation_size": 16}, "representation_size=16"),
        ({"attention_dropout": 0.1}, r"attention_dropout=0\.1"),
        ({"conv_stem_configs": [ConvStemConfig(8, 8, 8)]}, "conv_stem_configs"),
    ],
)
def test_options_we_have_not_are_named(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        from_torchvision(Theirs(**SHAPE, **arguments))


def test_other_models_and_tensors_are_named() -> None:
    with pytest.raises(RequestError, match="ResNet has no counterpart"):
        from_torchvision(torchvision.models.resnet18())
    state = Theirs(**SHAPE).state_dict()
    with pytest.raises(RequestError, match=r"another shape, are encoder\.pos_embedding$"):
        from_torchvision({name: value for name, value in state.items() if "pos_emb" not in name})
    with pytest.raises(
        RequestError, match=r"unknown heads\.pre_logits\.weight, encoder\.layers\.encoder_layer_1\.gamma"
    ):
        extra = {"heads.pre_logits.weight": torch.zeros(2), "encoder.layers.encoder_layer_1.gamma": torch.zeros(2)}
        from_torchvision({**state, **extra}, heads=2)
    del state["encoder.layers.encoder_layer_1.ln_2.bias"]
    with pytest.raises(RequestError, match=r"missing blocks\.1\.norm2\.bias"):
        from_torchvision(state, heads=2)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (VitConfig(pooling="mean", **OURS), "pooling 'mean'"),
        (VitConfig(registers=1, **OURS), "registers"),
        (VitConfig(embed_prefix=False, **OURS), "without position"),
        (VitConfig(layer_scale=0.1, **OURS), "layer_scale"),
        (VitConfig(qk_norm=True, **OURS), "qk_norm"),
        (VitConfig(pre_norm=True, **OURS), "pre_norm"),
        (VitConfig(norm_after_pool=True, **OURS), "norm_after_pool"),
        (VitConfig(activation="quick_gelu", **OURS), "activation 'quick_gelu'"),
        (DeitConfig(**OURS), "no counterpart of a deit"),
    ],
)
def test_options_torchvision_has_not_are_named(config: VitConfig, complaint: str) -> None:
    with torch.device("meta"):
        model = build(config, num_classes=3, image_size=32)
    with pytest.raises(RequestError, match=complaint):
        to_torchvision(model)


def test_a_model_without_a_head_is_refused_and_missing_biases_are_written_as_zeros() -> None:
    with pytest.raises(RequestError, match="without a head"):
        to_torchvision(build(VitConfig(**OURS), num_classes=0, image_size=32))
    ours = scattered(build(VitConfig(patch_bias=False, drop_path=0.1, **OURS), num_classes=3, image_size=32))
    written = to_torchvision(ours)
    theirs = Theirs(**written.config["model_args"])
    theirs.load_state_dict(written.state, strict=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(images), ours(images), atol=1e-5, rtol=0)
