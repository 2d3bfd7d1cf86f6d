"""Other libraries' models by reference: the same logits, and clear words where there is no network."""

from __future__ import annotations

import sys
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision

from vitcore.errors import RequestError
from vitcore.models import DeiT, ModelCard, VisionTransformer, build, load_reference, save_pretrained
from vitcore.models.interop.timm import from_timm
from vitcore.recipe import VitConfig


@pytest.mark.parametrize(
    ("name", "kind", "mean"),
    [
        ("vit_tiny_patch16_224", VisionTransformer, 0.5),
        ("deit_tiny_distilled_patch16_224", DeiT, 0.485),
    ],
)
def test_timm_from_a_file(name: str, kind: type[VisionTransformer], mean: float, tmp_path: Path) -> None:
    theirs = timm.create_model(name).eval()
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(theirs.state_dict(), file)
    loaded = load_reference(f"timm:{name}@{file}")
    assert type(loaded.model) is kind
    assert (loaded.card.image_size, loaded.card.num_classes, loaded.card.resize) == (224, 1000, 248)
    assert loaded.card.model.mean[0] == mean
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), theirs(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_heads": 2}, {"patch_size": 8, "class_token": False, "global_pool": "avg", "fc_norm": False}],
)
def test_from_timm_reads_the_architecture(options: dict[str, Any]) -> None:
    shape = {"img_size": 64, "embed_dim": 64, "depth": 2, "num_heads": 4, "num_classes": 5, **options}
    theirs = timm.models.VisionTransformer(**shape).eval()
    images = torch.randn(2, 3, 64, 64)
    for ours in (from_timm(theirs), from_timm(theirs.state_dict(), heads=shape["num_heads"])):
        torch.testing.assert_close(ours.eval()(images), theirs(images), atol=1e-5, rtol=0)
        assert ours.config.heads == shape["num_heads"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"init_values": 1e-5}, r"unknown blocks\.0\.ls1\.gamma"),
        ({"reg_tokens": 4}, "unknown reg_token"),
        ({"qk_norm": True}, r"unknown blocks\.0\.attn\.q_norm\.weight"),
        ({"qkv_bias": False}, r"missing blocks\.0\.attn\.qkv\.bias"),
        ({"class_token": False, "global_pool": "avg"}, r"unknown fc_norm\.weight, fc_norm\.bias; missing norm\.weight"),
        ({"global_pool": "avg", "fc_norm": False}, "global_pool='avg' with a class token"),
        ({"act_layer": "quick_gelu"}, "only the exact GELU"),
        ({"no_embed_class": True, "class_token": True}, "pos_embed"),
        ({"num_classes": 0}, r"missing head\.weight"),
    ],
)
def test_from_timm_names_what_it_does_not_know(options: dict[str, Any], complaint: str) -> None:
    theirs = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, **options)
    with pytest.raises(RequestError, match=complaint):
        from_timm(theirs)


def test_timm_models_of_other_kinds_are_refused() -> None:
    with pytest.raises(RequestError, match="ResNet has no counterpart"):
        load_reference("timm:resnet18")
    with pytest.raises(RequestError, match="no model 'vit_enormous'"):
        load_reference("timm:vit_enormous")


def test_an_unreachable_hub_says_how_to_give_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    with pytest.raises(RequestError, match=r"give the file: timm:vit_tiny_patch16_224@/path/to/model\.safetensors"):
        load_reference("timm:vit_tiny_patch16_224")


def test_timm_absent_or_given_a_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="pickled checkpoint"):
        load_reference("timm:vit_tiny_patch16_224@/tmp/vit.pth")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(RequestError, match="pip install timm"):
        load_reference("timm:vit_tiny_patch16_224")


def test_torchvision_from_the_hub_cache_or_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    theirs = torchvision.models.resnet18().eval()
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(theirs.state_dict(), file)
    seen: dict[str, object] = {}

    def cached(url: str, **options: object) -> dict[str, torch.Tensor]:
        seen.update(options, url=url)
        return theirs.state_dict()

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", cached)
    images = torch.randn(1, 3, 64, 64)
    for ref in ("torchvision:resnet18", f"torchvision:resnet18@{file}"):
        loaded = load_reference(ref)
        torch.testing.assert_close(loaded.model(images), theirs(images))
        assert (loaded.card.image_size, loaded.card.resize, loaded.card.model.mean[0]) == (224, 256, 0.485)
    assert seen["weights_only"] is True

    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    with pytest.raises(RequestError, match=r"put the file at .*resnet18-.*\.pth"):
        load_reference("torchvision:resnet18")


def test_our_own_folder_and_what_is_no_reference(tmp_path: Path) -> None:
    config = VitConfig(patch=8, width=48, depth=1, heads=3)
    model = build(config, num_classes=2, image_size=16)
    digest = save_pretrained(tmp_path, model, ModelCard(model=config, image_size=16, num_classes=2))
    assert load_reference(str(tmp_path)).digest == digest
    for ref in ("pypi:resnet", "models:/name/3", "torchvision:resnet_18", str(tmp_path / "absent")):
        with pytest.raises(RequestError):
            load_reference(ref)
