"""torchvision's models by name: from torch's cache or a file, ViT and CNNs."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision

from vitcore.errors import RequestError
from vitcore.models import VisionTransformer, load_reference


def test_from_the_cache_or_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
        assert bool(loaded.card.classes) == ("@" not in ref)
    assert seen["weights_only"] is True


def test_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    for name in ("resnet18", "vit_b_16"):
        with pytest.raises(RequestError, match=rf"put the file at .*{name}-.*\.pth"):
            load_reference(f"torchvision:{name}")


def test_a_vit_from_a_file(tmp_path: Path) -> None:
    # The name gives the statistics; sizes and classes are those of the file.
    theirs = torchvision.models.VisionTransformer(
        image_size=32, patch_size=16, num_layers=2, num_heads=12, hidden_dim=192, mlp_dim=96, num_classes=5
    ).eval()
    torch.nn.init.normal_(theirs.heads.head.weight, std=0.1)
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(theirs.state_dict(), file)
    loaded = load_reference(f"torchvision:vit_b_16@{file}")
    assert isinstance(loaded.model, VisionTransformer)
    assert (loaded.card.num_classes, loaded.card.model.mean[0], loaded.card.classes) == (5, 0.485, ())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), theirs(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["resnet_18", "vit_b_17", "swin_t"])
def test_names_that_are_not_supported(name: str) -> None:
    with pytest.raises(RequestError, match=f"there is no CNN '{name}'"):
        load_reference(f"torchvision:{name}")
