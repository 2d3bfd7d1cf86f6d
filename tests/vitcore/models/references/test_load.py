"""What names a model: the table of schemes, references that hold in any directory, what is no reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitcore.errors import RequestError
from vitcore.models import ModelCard, build, load_reference, save_pretrained
from vitcore.models.references import absolute
from vitcore.recipe import VitConfig


def test_our_own_folder(tmp_path: Path) -> None:
    config = VitConfig(patch=8, width=48, depth=1, heads=3)
    model = build(config, num_classes=2, image_size=16)
    digest = save_pretrained(tmp_path, model, ModelCard(model=config, image_size=16, num_classes=2))
    assert load_reference(str(tmp_path)).digest == digest


@pytest.mark.parametrize("ref", ["pypi:resnet", "pypi:efficientnet_lite0@file", "torchvision:resnet_18", "absent"])
def test_what_is_no_reference(ref: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError):
        load_reference(ref)


def test_a_registry_is_asked_elsewhere() -> None:
    with pytest.raises(RequestError, match="'models:/name/3' lies in a registry"):
        load_reference("models:/name/3")


def test_references_hold_in_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("timm:vit_tiny_patch16_224") == "timm:vit_tiny_patch16_224"
    assert absolute("hf:google/vit-base-patch16-224") == "hf:google/vit-base-patch16-224"
    assert absolute("import:teachers:mine") == "import:teachers:mine"
    assert absolute("timm:vit@weights.safetensors") == f"timm:vit@{tmp_path}/weights.safetensors"
    assert absolute("open_clip:ViT-B-32/openai@w.safetensors") == f"open_clip:ViT-B-32/openai@{tmp_path}/w.safetensors"
    assert absolute("hf:./vit") == f"hf:{tmp_path}/vit"
    assert absolute("model") == f"{tmp_path}/model"
