"""transformers' models by repository or folder: as its own classes write them, and nothing guessed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from vitcore.errors import RequestError
from vitcore.models import load_reference
from vitcore.models.clip import Clip

Put = Callable[[str, Mapping[str, Any]], Path]

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BIRDS = {0: "wren", 1: "owl", 2: "crow"}


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("birds")
    labels = {"id2label": BIRDS, "label2id": {label: number for number, label in BIRDS.items()}}
    config = transformers.ViTConfig(**SHAPE, image_size=32, patch_size=8, **labels)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder)
    return folder


def test_a_folder_that_transformers_wrote(birds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = transformers.ViTForImageClassification.from_pretrained(birds).eval()
    images = torch.randn(2, 3, 32, 32)
    monkeypatch.chdir(birds.parent)
    digests = set()
    for ref in (f"hf:me/birds@{birds}", f"hf:{birds}", f"hf:./{birds.name}"):
        loaded = load_reference(ref)
        assert loaded.card.classes == ("wren", "owl", "crow")
        assert (loaded.card.image_size, loaded.card.resize) == (32, 32)
        assert loaded.card.model.mean == (0.1, 0.2, 0.3) and loaded.card.model.std == (0.5, 0.5, 0.5)
        with torch.no_grad():
            torch.testing.assert_close(loaded.model(images), theirs(images).logits, atol=1e-5, rtol=0)
        digests.add(loaded.digest)
    assert len(digests) == 1


def test_a_repository_in_the_hubs_cache(birds: Path, put: Put) -> None:
    state = transformers.ViTForImageClassification.from_pretrained(birds).state_dict()
    config = json.loads((birds / "config.json").read_text())
    preparation = json.loads((birds / "preprocessor_config.json").read_text())
    put("me/birds", {"config.json": config, "model.safetensors": state})
    with pytest.raises(RequestError, match=r"preprocessor_config\.json of me/birds .* how the images are normalised"):
        load_reference("hf:me/birds")
    put("me/birds", {"preprocessor_config.json": preparation})
    assert load_reference("hf:me/birds").digest == load_reference(f"hf:{birds}").digest
    with pytest.raises(RequestError, match="give a folder with its files: hf:me/absent@/path/to/folder"):
        load_reference("hf:me/absent")
    with pytest.raises(RequestError, match="is no repository of the hub; give ORG/NAME"):
        load_reference("hf:a/b/c")


def test_clip_says_how_images_are_prepared_one_level_deeper(tmp_path: Path) -> None:
    text = {**SHAPE, "vocab_size": 99, "max_position_embeddings": 12, "bos_token_id": 97, "eos_token_id": 98}
    config = transformers.CLIPConfig(
        vision_config={**SHAPE, "image_size": 32, "patch_size": 8}, text_config=text, projection_dim=24
    )
    theirs = transformers.CLIPModel(config).eval()
    theirs.save_pretrained(tmp_path)
    inner = transformers.CLIPImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}).to_dict()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    loaded = load_reference(f"hf:{tmp_path}")
    assert isinstance(loaded.model, Clip)
    assert (loaded.card.num_classes, loaded.card.image_size, loaded.card.resize) == (0, 32, 36)
    assert loaded.card.model.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        said = torch.nn.functional.normalize(theirs.get_image_features(pixel_values=images).pooler_output, dim=1)
        torch.testing.assert_close(loaded.model.embed_images(images), said, atol=1e-5, rtol=0)


def test_pickles_and_damage_are_refused(birds: Path, tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((birds / name).read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(RequestError, match=r"there is no file .*model\.safetensors; give a \.safetensors file"):
        load_reference(f"hf:{tmp_path}")
    (tmp_path / "model.safetensors").write_bytes((birds / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(RequestError, match="is not a whole safetensors file"):
        load_reference(f"hf:{tmp_path}")
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0.5, 0.5, 0.5]}')
    with pytest.raises(RequestError, match="no image_mean of three numbers"):
        load_reference(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(RequestError, match="does not hold an object"):
        load_reference(f"hf:{tmp_path}")
