"""transformers' models as ours and back: the same outputs, the same bits, and every other option refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.clip import Clip
from vitcore.models.deit import DeiT
from vitcore.models.interop.hf import from_hf, labels_of, to_hf
from vitcore.recipe import ClipConfig, VitConfig

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
IMAGE = {**SHAPE, "image_size": 32, "patch_size": 8}
TEXT = {**SHAPE, "vocab_size": 99, "max_position_embeddings": 12, "bos_token_id": 97, "eos_token_id": 98}


def perturbed(model: nn.Module) -> nn.Module:
    """Every parameter random: tokens and biases start at zero, and would hide that they are mixed up."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim():
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def vit(**options: Any) -> nn.Module:
    labels = {"id2label": {0: "wren", 1: "owl", 2: "crow"}, "label2id": {"wren": 0, "owl": 1, "crow": 2}}
    return perturbed(transformers.ViTForImageClassification(transformers.ViTConfig(**IMAGE, **labels, **options)))


def deit(kind: str, **options: Any) -> nn.Module:
    return perturbed(getattr(transformers, kind)(transformers.DeiTConfig(**IMAGE, num_labels=3, **options)))


def clip(**options: Any) -> nn.Module:
    config = transformers.CLIPConfig(
        vision_config={**IMAGE, **options}, text_config={**TEXT, **options}, projection_dim=24
    )
    return perturbed(transformers.CLIPModel(config))


def captions() -> Tensor:
    tokens = torch.randint(1, 97, (3, 12))
    tokens[0, 5], tokens[1, 11], tokens[2, 8] = 98, 98, 98
    tokens[0, 6:] = 0
    return tokens


@pytest.mark.parametrize(
    "make",
    [
        vit,
        lambda: vit(hidden_act="quick_gelu", layer_norm_eps=1e-3),
        lambda: vit(hidden_act="gelu_pytorch_tanh"),
        lambda: deit("DeiTForImageClassification"),
        lambda: deit("DeiTForImageClassificationWithTeacher", layer_norm_eps=1e-5),
    ],
)
def test_logits_are_theirs(make: Callable[[], nn.Module]) -> None:
    theirs = make()
    ours = from_hf(theirs).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images).logits, atol=1e-5, rtol=0)
    assert ours.num_classes == 3 and ours.image_size == 32


def test_bare_models_give_their_tokens_as_features() -> None:
    images = torch.randn(2, 3, 32, 32)
    theirs = perturbed(transformers.ViTModel(transformers.ViTConfig(**IMAGE), use_mask_token=True))
    distilled = perturbed(transformers.DeiTModel(transformers.DeiTConfig(**IMAGE)))
    with torch.no_grad():
        tokens, both = theirs(images).last_hidden_state, distilled(images).last_hidden_state
        torch.testing.assert_close(from_hf(theirs).eval()(images), tokens[:, 0], atol=1e-5, rtol=0)
        torch.testing.assert_close(from_hf(distilled).eval()(images), both[:, :2].mean(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{}, {"hidden_act": "gelu", "layer_norm_eps": 1e-3}])
def test_clip_embeds_as_theirs(options: dict[str, Any]) -> None:
    theirs = clip(**options)
    ours = from_hf(theirs).eval()
    assert isinstance(ours, Clip)
    images, tokens = torch.randn(2, 3, 32, 32), captions()
    with torch.no_grad():
        said = theirs(input_ids=tokens, pixel_values=images)
        torch.testing.assert_close(ours.embed_images(images), said.image_embeds, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.embed_texts(tokens), said.text_embeds, atol=1e-5, rtol=0)
        similar = ours.logit_scale.exp() * ours.embed_images(images) @ ours.embed_texts(tokens).T
        torch.testing.assert_close(similar, said.logits_per_image, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "make",
    [
        vit,
        lambda: perturbed(transformers.ViTModel(transformers.ViTConfig(**IMAGE), add_pooling_layer=False)),
        lambda: deit("DeiTForImageClassification"),
        lambda: deit("DeiTForImageClassificationWithTeacher"),
        clip,
    ],
)
def test_the_way_back_is_bit_equal(make: Callable[[], nn.Module]) -> None:
    theirs = make()
    foreign = to_hf(from_hf(theirs))
    assert foreign.config["architectures"] == [type(theirs).__name__]
    again, loading = type(theirs).from_pretrained(
        None,
        config=type(theirs).config_class.from_dict(dict(foreign.config)),
        state_dict=dict(foreign.state),
        output_loading_info=True,
        **({"add_pooling_layer": False} if isinstance(theirs, transformers.ViTModel) else {}),
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    before, after = theirs.state_dict(), again.state_dict()
    assert list(before) == list(after)
    for name in before:
        assert torch.equal(before[name], after[name]), name
    twice = to_hf(from_hf((foreign.state, foreign.config)))  # the names of files are read too
    assert twice.config == foreign.config
    assert all(torch.equal(twice.state[name], tensor) for name, tensor in foreign.state.items())


def test_what_older_files_of_clip_hold_is_read() -> None:
    theirs = clip()
    state = dict(theirs.state_dict())
    state["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    config = theirs.config.to_dict()
    config["text_config"]["eos_token_id"] = 2
    tokens = captions()
    with torch.no_grad():
        said = theirs.get_text_features(input_ids=tokens).pooler_output
        ours = from_hf((state, config)).eval()
        assert isinstance(ours, Clip)
        torch.testing.assert_close(ours.embed_texts(tokens), nn.functional.normalize(said, dim=1), atol=1e-5, rtol=0)
    config["text_config"]["eos_token_id"] = 50
    with pytest.raises(RequestError, match="eos_token_id is 50"):
        from_hf((state, config))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "swin"}, "model_type 'swin' has no counterpart"),
        ({"model_type": ["vit"]}, "model_type"),
        ({"qkv_bias": False}, "qkv_bias is false"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"num_channels": 1}, "num_channels is 1"),
        ({"num_attention_heads": 5}, "width 32 is not divisible by 5 heads"),
        ({"num_attention_heads": "4"}, "num_attention_heads is '4'"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps is 'small'"),
        ({"image_size": [32, 64]}, r"image_size is \[32, 64\]"),
        ({"image_size": 64}, r"pos_embed is \(1, 17, 32\), expected \(1, 65, 32\)"),
    ],
)
def test_other_options_are_refused_by_name(change: dict[str, Any], complaint: str) -> None:
    theirs = vit()
    with pytest.raises(RequestError, match=complaint):
        from_hf((theirs.state_dict(), theirs.config.to_dict() | change))


def test_unknown_and_missing_parameters_are_named() -> None:
    theirs = vit()
    state, config = dict(theirs.state_dict()), theirs.config.to_dict()
    with pytest.raises(RequestError, match=r"no counterpart here: decoder\.0\.weight"):
        from_hf((state | {"decoder.0.weight": torch.zeros(1)}, config))
    del state["vit.layers.1.attention.k_proj.bias"]
    with pytest.raises(RequestError, match=r"missing encoder\.layer\.1\.attention\.attention\.key\.bias"):
        from_hf((state, config))
    with pytest.raises(RequestError, match="not those of a ViT"):
        from_hf(({}, config))
    with pytest.raises(RequestError, match="vision_model has no layers"):
        from_hf(({}, clip().config.to_dict()))


def test_what_transformers_does_not_compute_is_refused_by_name() -> None:
    from vitcore.models import build

    shape = {"patch": 8, "width": 32, "depth": 1, "heads": 4}
    for option, value in {"pooling": "mean", "layer_scale": 0.1, "qk_norm": True, "registers": 2}.items():
        model = build(VitConfig(**shape, **{option: value}), num_classes=2, image_size=16)
        with pytest.raises(RequestError, match=f"does not compute {option}"):
            to_hf(model)
    sigmoid = ClipConfig(width=16, image=VitConfig(**shape), text={"width": 32, "depth": 1, "heads": 4}, bias=-10.0)
    with pytest.raises(RequestError, match="does not compute bias"):
        to_hf(build(sigmoid, num_classes=0, image_size=16))


def test_class_names_are_read_in_the_order_of_their_numbers() -> None:
    many = {str(number): f"class {number}" for number in reversed(range(12))}
    assert labels_of({"id2label": many}, 12) == tuple(f"class {number}" for number in range(12))
    assert labels_of({"id2label": {0: "LABEL_0", 1: "LABEL_1"}}, 2) == ()
    assert labels_of({}, 2) == () and labels_of({"id2label": many}, 0) == ()
    with pytest.raises(RequestError, match="names 12 classes, but the head has 3"):
        labels_of({"id2label": many}, 3)
    with pytest.raises(RequestError, match="no map from class numbers"):
        labels_of({"id2label": {"first": "wren"}}, 1)


def test_a_deit_reads_two_heads_and_its_statistics() -> None:
    ours = from_hf(deit("DeiTForImageClassificationWithTeacher"), std=(0.1, 0.2, 0.3))
    assert isinstance(ours, DeiT)
    assert ours.config.mean == (0.485, 0.456, 0.406) and ours.config.std == (0.1, 0.2, 0.3)
