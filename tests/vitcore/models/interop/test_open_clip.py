"""open_clip's models as ours and back: the same embeddings, bit-equal weights, refusals that name the part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer as TimmViT
from timm.models.vision_transformer import _create_vision_transformer
from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.clip import Clip
from vitcore.models.interop.open_clip import from_open_clip, to_open_clip
from vitcore.recipe import VitConfig

CONTEXT, VOCABULARY, SIZE = 12, 50, 32
TINY = "vit_tiny_patch8_siglip_32"
NATIVE: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 48, "heads": 3, "layers": 2},
}
SIGLIP: dict[str, Any] = {
    "embed_dim": 32,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": SIZE,
        "timm_model_name": TINY,
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": CONTEXT,
        "vocab_size": VOCABULARY,
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 32,
        "heads": 2,
        "layers": 2,
        "mlp_ratio": 3.7362,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    },
}


def vit_tiny_patch8_siglip_32(pretrained: bool = False, **options: Any) -> TimmViT:
    sizes = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": SIZE}
    given = dict(sizes, class_token=False, global_pool="map", act_layer="gelu_tanh") | options
    return _create_vision_transformer("vit_base_patch16_224", pretrained=False, **given)


@pytest.fixture(scope="module", autouse=True)
def tiny_siglip() -> Iterator[None]:
    """timm knows SigLIP's towers by name only: give it one small enough for a test."""
    vit_tiny_patch8_siglip_32.__module__ = "timm.models.vision_transformer"
    register_model(vit_tiny_patch8_siglip_32)
    return


def merged(base: dict[str, Any], **changes: dict[str, Any] | Any) -> dict[str, Any]:
    return base | {
        name: base.get(name, {}) | value if isinstance(value, dict) else value for name, value in changes.items()
    }


def theirs(model_cfg: dict[str, Any], seed: int = 0) -> nn.Module:
    """open_clip's model with no parameter left at zero, in evaluation mode."""
    torch.manual_seed(seed)
    custom = model_cfg.get("custom_text")
    kind = CustomTextCLIP if custom else CLIP
    model = kind(**{name: value for name, value in model_cfg.items() if name != "custom_text"}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    tokens = torch.randint(1, VOCABULARY - 1, (5, CONTEXT))
    for row, end in enumerate((2, 5, CONTEXT - 1, 7, 3)):
        tokens[row, end] = VOCABULARY - 1
        tokens[row, end + 1 :] = 0
    return torch.randn(4, 3, SIZE, SIZE), tokens


CASES = {
    "gelu": NATIVE,
    "quick_gelu": merged(NATIVE, quick_gelu=True),
    "tanh": merged(NATIVE, vision_cfg={"act_kwargs": {"approximate": "tanh"}}),
    "average": merged(NATIVE, vision_cfg={"pool_type": "avg", "ls_init_value": 0.1, "mlp_ratio": 3.7}),
    "average before the norm": merged(NATIVE, vision_cfg={"pool_type": "avg", "final_ln_after_pool": True}),
    "no norm before": merged(NATIVE, vision_cfg={"no_ln_pre": True, "norm_kwargs": {"eps": 1e-6}}),
    "own text module": merged(NATIVE, custom_text=True),
    "siglip": SIGLIP,
    "timm, projected": merged(SIGLIP, embed_dim=24, vision_cfg={"timm_proj": "linear"}),
}


@pytest.mark.parametrize("case", CASES)
def test_embeddings_and_logits_are_theirs(case: str) -> None:
    model = theirs(CASES[case])
    ours = from_open_clip(model).eval()
    images, tokens = inputs()
    with torch.no_grad():
        image, text = model.encode_image(images, normalize=True), model.encode_text(tokens, normalize=True)
        torch.testing.assert_close(ours.embed_images(images), image, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours(images), image, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.embed_texts(tokens), text, rtol=0, atol=1e-5)
        expected, _ = model.get_logits(images, tokens)
        bias = 0 if ours.logit_bias is None else ours.logit_bias
        logits = ours.logit_scale.exp() * ours.embed_images(images) @ ours.embed_texts(tokens).T + bias
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * ours.logit_scale.exp().item())
    assert image.std() > 0.05 and (image[0] - image[1]).abs().max() > 1e-3, "the images cannot be told apart"


@pytest.mark.parametrize("case", CASES)
def test_round_trips_are_bit_equal(case: str) -> None:
    model = theirs(CASES[case])
    ours = from_open_clip(model)
    name = TINY if "timm_model_name" in CASES[case]["vision_cfg"] else None
    back = to_open_clip(ours, timm_name=name)
    if case != "own text module":  # which open_clip loads under either name
        assert back.state.keys() == model.state_dict().keys()
        for key, tensor in model.state_dict().items():
            assert torch.equal(back.state[key], tensor), key
    rebuilt = theirs(back.config["model_cfg"], seed=9)
    rebuilt.load_state_dict(back.state, strict=True)
    again = from_open_clip((back.state, back.config))
    assert again.config == ours.config and again.image_size == ours.image_size
    for key, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    images, tokens = inputs()
    with torch.no_grad():
        assert torch.equal(rebuilt.encode_image(images), model.encode_image(images))
        assert torch.equal(rebuilt.encode_text(tokens), model.encode_text(tokens))


def test_a_configuration_and_weights_are_enough() -> None:
    for cfg in (NATIVE, SIGLIP, CASES["quick_gelu"]):
        model = theirs(cfg)
        config = {"model_cfg": cfg, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}}
        ours, of_module = from_open_clip((model.state_dict(), config)), from_open_clip(model)
        assert ours.config.mean == (0.5, 0.4, 0.3) and ours.config.std == (0.2, 0.2, 0.1)
        assert of_module.config.mean == pytest.approx((0.481, 0.458, 0.408), abs=1e-3)
        same = {"mean": ours.config.mean, "std": ours.config.std}
        image = of_module.config.image.model_copy(update=same)
        assert ours.config == of_module.config.model_copy(update={"image": image})
    assert ours.config.text.tokenizer == "clip" and ours.config.text.activation == "quick_gelu"
    siglip = from_open_clip(theirs(SIGLIP)).config
    assert siglip.text.tokenizer == "siglip" and not siglip.text.causal and siglip.bias == -10
    assert isinstance(siglip.image, VitConfig) and siglip.image.pooling == "map" and not siglip.image_projection


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision_cfg": {"attentional_pool": True}}, "attentional_pool"),
        ({"vision_cfg": {"layers": [1, 1, 1, 1]}}, "vision_cfg.layers"),
        ({"vision_cfg": {"layers": 10**9}}, "vision_cfg.layers is 1000000000, but the weights have 2"),
        ({"vision_cfg": {"qk_norm": True}}, "CustomResidualAttentionBlock"),
        ({"vision_cfg": {"pool_type": "none"}}, "pool_type='none'"),
        ({"vision_cfg": {"colour": 3}}, "colour"),
        ({"vision_cfg": {"timm_model_name": "hf-hub:someone/something"}}, "a tower of the hub"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "a tower of the hub"),
        ({"text_cfg": {"hf_tokenizer_name": "bert-base-uncased"}}, "the tokenizer bert-base-uncased"),
        ({"text_cfg": {"layers": 3}}, "text_cfg.layers is 3, but the weights have 2"),
        ({"text_cfg": {"pool_type": "first"}}, "pool_type='first'"),
        ({"text_cfg": {"ls_init_value": 0.1}}, "ls_init_value of the text tower"),
        ({"text_cfg": {"proj_type": "none"}}, "proj_type='none'"),
        ({"multimodal_cfg": {}}, "multimodal_cfg"),
        ({"init_logit_bias": -10}, "missing logit_bias"),
        ({"vision_cfg": {"no_ln_pre": True}}, "unknown visual.ln_pre.bias, visual.ln_pre.weight"),
        ({"vision_cfg": {"width": 64}}, r"image.cls_token is \(1, 1, 32\), expected \(1, 1, 64\)"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    state = theirs(NATIVE).state_dict()
    with pytest.raises(RequestError, match=said):
        from_open_clip((state, {"model_cfg": merged(NATIVE, **changes)}))


def test_towers_that_open_clip_cannot_name() -> None:
    siglip = from_open_clip(theirs(SIGLIP))
    with pytest.raises(RequestError, match="none of SigLIP's"):
        to_open_clip(siglip)
    with pytest.raises(RequestError, match="another architecture"):
        to_open_clip(siglip, timm_name="vit_base_patch16_siglip_224")
    with pytest.raises(RequestError, match="timm has no model 'nothing'"):
        to_open_clip(siglip, timm_name="nothing")
    mixed = from_open_clip(theirs(CASES["quick_gelu"]))
    text = mixed.config.text.model_copy(update={"activation": "gelu"})
    mixed.config = mixed.config.model_copy(update={"text": text})
    with pytest.raises(RequestError, match="quick_gelu in both towers or in none"):
        to_open_clip(mixed)
    assert isinstance(mixed, Clip)
    with pytest.raises(RequestError, match="Linear has no counterpart"):
        from_open_clip(nn.Linear(2, 2))
