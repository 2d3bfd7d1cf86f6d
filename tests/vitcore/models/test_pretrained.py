"""The file format: bit-equal, checked, and unable to run code."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from vitcore.errors import RequestError
from vitcore.models import ModelCard, VisionTransformer, build, load_pretrained, save_pretrained
from vitcore.models.pretrained import weights_digest
from vitcore.recipe import DeitConfig, Recipe, VitConfig


@pytest.fixture
def model() -> VisionTransformer:
    made = build(DeitConfig(patch=8, width=48, depth=2, heads=3), num_classes=3, image_size=32)
    assert isinstance(made, VisionTransformer)
    return made


@pytest.fixture
def card(model: VisionTransformer) -> ModelCard:
    recipe = Recipe(name="small", model=model.config)
    return ModelCard(
        model=model.config,
        image_size=32,
        num_classes=3,
        classes=("a", "b", "c"),
        recipe=recipe,
        dataset="d1",
        resize=40,
    )


def test_round_trip_is_bit_equal(model: VisionTransformer, card: ModelCard, tmp_path: Path) -> None:
    digest = save_pretrained(tmp_path / "m", model, card)
    before = torch.get_rng_state()
    loaded = load_pretrained(tmp_path / "m")
    assert torch.equal(torch.get_rng_state(), before)  # loading draws no random number
    assert (loaded.card, loaded.digest) == (card, digest)
    assert not loaded.model.training
    assert type(loaded.model) is type(model)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]
    assert load_pretrained(f"file://{tmp_path}/m").digest == digest


def test_digest_is_of_the_tensors(model: VisionTransformer) -> None:
    state = model.state_dict()
    digest = weights_digest(state)
    assert weights_digest(dict(reversed(state.items()))) == digest
    with torch.no_grad():
        model.pos_embed[0, 0, 0] += 1
    assert weights_digest(model.state_dict()) != digest


def test_a_card_of_another_model_is_not_written(model: VisionTransformer, card: ModelCard, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the model's"):
        save_pretrained(tmp_path, model, card.model_copy(update={"image_size": 64}))
    with pytest.raises(ValueError, match="2 class names for 3"):
        ModelCard(model=model.config, image_size=32, num_classes=3, classes=("a", "b"))


def test_pickles_are_refused_unopened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "exploded",))  # type: ignore[return-value]

    for name in ("model.pt", "model.pth", "pytorch_model.bin", "last.ckpt"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(RequestError, match=f"{name} is a pickled checkpoint"):
            load_pretrained(tmp_path / name)
    with pytest.raises(RequestError, match="pickled checkpoint"):
        load_pretrained(tmp_path)  # a folder that holds nothing else
    assert not (tmp_path / "exploded").exists()


def test_missing_and_unknown_tensors_are_named(model: VisionTransformer, card: ModelCard, tmp_path: Path) -> None:
    save_pretrained(tmp_path, model, card)
    state = model.state_dict()
    state["blocks.0.gamma"] = state.pop("norm.weight")
    _replace(tmp_path, state)
    with pytest.raises(RequestError, match=r"unknown blocks\.0\.gamma; missing norm\.weight"):
        load_pretrained(tmp_path)
    state = model.state_dict()
    state["head.bias"] = torch.zeros(4)
    _replace(tmp_path, state)
    with pytest.raises(RequestError, match=r"head\.bias is \(4,\), expected \(3,\)"):
        load_pretrained(tmp_path)


def test_damage_is_noticed(model: VisionTransformer, card: ModelCard, tmp_path: Path) -> None:
    save_pretrained(tmp_path, model, card)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(RequestError, match="is damaged"):
        load_pretrained(tmp_path)
    weights.write_bytes(whole[:-10])
    with pytest.raises(RequestError, match="not a whole safetensors file"):
        load_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(RequestError, match="there is no file"):
        load_pretrained(tmp_path)


def test_untrusted_cards_are_only_data(model: VisionTransformer, card: ModelCard, tmp_path: Path) -> None:
    save_pretrained(tmp_path, model, card)
    config = tmp_path / "config.json"
    written = json.loads(config.read_text())
    for change, complaint in [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map: Extra inputs"),
        ({"format": 2}, "format"),
        ({"model": {**written["model"], "kind": "evil.module.Model"}}, "model"),
        ({"model": {"kind": "cnn", "name": "os.system"}}, "there is no CNN 'os.system'"),
        ({"model": {**written["model"], "width": 3 * 2**16}}, "not of this architecture"),  # and no memory is asked for
        ({"model": {**written["model"], "width": 3 * 2**40}}, "cannot be built"),
    ]:
        config.write_text(json.dumps({**written, **change}))
        with pytest.raises(RequestError, match=complaint):
            load_pretrained(tmp_path)
    config.write_text("{")
    with pytest.raises(RequestError, match="is not JSON"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_a_model_says_what_to_give(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=r"holds config\.json and model\.safetensors"):
        load_pretrained(tmp_path / name)


def test_half_precision_files_become_float32(tmp_path: Path) -> None:
    config = VitConfig(patch=8, width=48, depth=1, heads=3)
    model = build(config, num_classes=2, image_size=16).half()
    save_pretrained(tmp_path, model, ModelCard(model=config, image_size=16, num_classes=2))
    assert {value.dtype for value in load_pretrained(tmp_path).model.parameters()} == {torch.float32}


def _replace(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Other weights under the same card, with the digest a card of theirs would carry."""
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(state))
    card = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**card, "weights": weights_digest(state)}))
