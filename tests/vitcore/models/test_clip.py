"""The image and text model: where texts are read, what is frozen in its names, its sizes and its start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vitcore.errors import RequestError
from vitcore.models import ModelCard, adapt, build, load_pretrained, save_pretrained
from vitcore.models.clip import Clip
from vitcore.models.text import TextTransformer
from vitcore.recipe import ClipConfig, CnnConfig, DeitConfig, TextConfig, VitConfig

TEXT = TextConfig(context=20, vocabulary=60, width=32, depth=3, heads=2)
IMAGE = VitConfig(patch=8, width=48, depth=2, heads=3, pre_norm=True, patch_bias=False)
CONFIG = ClipConfig(width=24, image=IMAGE, text=TEXT)


def make(config: ClipConfig = CONFIG, seed: int = 0) -> Clip:
    torch.manual_seed(seed)
    model = build(config, num_classes=0, image_size=32)
    assert isinstance(model, Clip)
    return model.eval()


def tokens(*ends: int) -> torch.Tensor:
    """Texts that end at these places; what follows is padding."""
    torch.manual_seed(1)
    tokens = torch.randint(1, 59, (len(ends), TEXT.context))
    for row, end in enumerate(ends):
        tokens[row, end] = 59
        tokens[row, end + 1 :] = 0
    return tokens


@pytest.mark.parametrize("image", [IMAGE, DeitConfig(patch=8, width=32, depth=1, heads=2), CnnConfig(name="resnet18")])
def test_embeddings_have_length_1_whatever_the_tower(image: Any) -> None:
    model = make(CONFIG.model_copy(update={"image": image}))
    pixels = torch.randn(2, 3, 32, 32)
    embeddings = [model.embed_images(pixels), model.embed_texts(tokens(4, 9))]
    assert torch.equal(model(pixels), embeddings[0])
    for embedding in embeddings:
        assert embedding.shape == (2, 24) and embedding.dtype == torch.float32
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(pixels).dtype == torch.float32
    assert (model.num_classes, model.image_size, model.config.mean) == (0, 32, image.mean)


def test_a_text_is_read_at_its_end_and_sees_nothing_behind() -> None:
    text = make().text
    some = tokens(5, 3)
    changed = some.clone()
    changed[0, 6:] = torch.randint(1, 50, (14,))
    assert torch.equal(text(some), text(changed))
    changed[0, 5], changed[0, 6] = 7, 59
    assert not torch.allclose(text(some)[0], text(changed)[0])
    last = make(CONFIG.model_copy(update={"text": TEXT.model_copy(update={"pooling": "last", "tokenizer": "siglip"})}))
    assert not torch.allclose(last.text(some)[0], text(some)[0])
    open_config = TEXT.model_copy(update={"causal": False, "pooling": "last", "tokenizer": "siglip"})
    both = make(CONFIG.model_copy(update={"text": open_config})).text
    moved = some.clone()
    moved[0, 0] = 3
    assert not torch.allclose(both(some)[0], both(moved)[0])


def test_tokens_that_nothing_depends_on_are_cut_off() -> None:
    text = make().text
    some = tokens(5, 9)
    assert text.cut(some).shape == (2, 16) and text.cut(tokens(19)).shape == (1, 20)
    text.train()
    results = []
    for given in (some, text.cut(some)):
        text.zero_grad()
        embedding = text(given)
        embedding.square().sum().backward()
        results.append([embedding, *(parameter.grad.clone() for parameter in text.parameters())])
    for whole, cut in zip(*results, strict=True):
        torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-6)
    for change in ({"causal": False}, {"pooling": "last", "tokenizer": "siglip"}):
        other = TextTransformer(TEXT.model_copy(update=change), 8)
        assert other.cut(some).shape == some.shape


def test_layers_end_together() -> None:
    model = make()
    assert model.num_layers == 4
    expected = {
        "image.patch_embed.proj.weight": 1,
        "image.pos_embed": 1,
        "image.blocks.0.mlp.fc1.weight": 2,
        "image.blocks.1.attn.qkv.weight": 3,
        "image.norm.weight": 4,
        "image_projection.weight": 4,
        "text.token_embedding.weight": 0,
        "text.pos_embed": 0,
        "text.blocks.0.norm1.weight": 1,
        "text.blocks.2.norm1.weight": 3,
        "text.norm.bias": 4,
        "text.projection.weight": 4,
        "logit_scale": 4,
    }
    assert {name: model.layer_of(name) for name in expected} == expected
    assert {model.layer_of(name) for name, _ in model.named_parameters()} == {0, 1, 2, 3, 4}
    for name in ("nothing", "text.nothing", "image.nothing", "image"):
        with pytest.raises((KeyError, AttributeError)):
            model.layer_of(name)
    assert model.undecayed() == {"image.pos_embed", "image.cls_token", "text.pos_embed"}


def test_another_image_size_changes_positions_only() -> None:
    model = make()
    larger = adapt(model, image_size=48)
    assert larger.image_size == 48 and larger.config == model.config
    for name, tensor in larger.state_dict().items():
        if name == "image.pos_embed":
            assert tensor.shape == (1, 37, 48)
        else:
            assert torch.equal(tensor, model.state_dict()[name]), name
    assert larger(torch.randn(1, 3, 48, 48)).shape == (1, 24)


def test_a_folder_keeps_it(tmp_path: Path) -> None:
    model = make(CONFIG.model_copy(update={"bias": -10.0}))
    save_pretrained(tmp_path, model, ModelCard(model=model.config, image_size=32, num_classes=0))
    again = load_pretrained(tmp_path)
    assert again.card.model == model.config and isinstance(again.model, Clip)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    with pytest.raises(RequestError, match="is a clip, not a classifier"):
        _ = again.classifier
    card = json.loads((tmp_path / "config.json").read_text())
    assert card["model"]["image"]["kind"] == "vit"


def test_the_start() -> None:
    wide = TextConfig(context=20, vocabulary=3000, width=256, depth=2, heads=4)
    config = ClipConfig(width=128, image=IMAGE, text=wide, scale=10.0, bias=-10.0)
    state = make(config).state_dict()
    deviations = {
        "text.token_embedding.weight": 0.02,
        "text.pos_embed": 0.01,
        "text.blocks.1.attn.qkv.weight": 256**-0.5,
        "text.blocks.1.attn.proj.weight": 256**-0.5 / 2,
        "text.blocks.1.mlp.fc1.weight": 512**-0.5,
        "text.blocks.1.mlp.fc2.weight": 256**-0.5 / 2,
        "text.projection.weight": 256**-0.5,
        "image_projection.weight": 48**-0.5,
    }
    for name, deviation in deviations.items():
        assert state[name].std().item() == pytest.approx(deviation, rel=0.05), name
    assert not any(tensor.any() for name, tensor in state.items() if name.startswith("text.") and "bias" in name)
    assert state["logit_scale"].exp().item() == pytest.approx(10)
    assert state["logit_bias"].item() == -10
    assert make().logit_bias is None


def test_configurations_that_cannot_be_built() -> None:
    with pytest.raises(RequestError, match=r"48 channels but the shared space 24: set model.image_projection"):
        make(CONFIG.model_copy(update={"image_projection": False}))
    with pytest.raises(RequestError, match="pooling 'end' is for the tokenizer 'clip'"):
        make(CONFIG.model_copy(update={"text": TEXT.model_copy(update={"tokenizer": "siglip"})}))
    same = make(CONFIG.model_copy(update={"image_projection": False, "width": 48}))
    assert "image_projection.weight" not in same.state_dict()
    assert same(torch.randn(1, 3, 32, 32)).shape == (1, 48)
