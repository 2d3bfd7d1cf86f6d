"""timm's models by name: ours with its weights, a CNN that can be trained, and everything else only asked."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

from vitcore.errors import RequestError
from vitcore.models import DeiT, VisionTransformer, adapt, load_pretrained, load_reference, save_pretrained
from vitcore.models.cnn import Cnn
from vitcore.recipe import CnnConfig

Put = Callable[[str, Mapping[str, Any]], Path]


def saved(name: str, folder: Path, **options: Any) -> tuple[torch.nn.Module, Path]:
    theirs = timm.create_model(name, **options).eval()
    safetensors.torch.save_file(theirs.state_dict(), folder / "model.safetensors")
    return theirs, folder / "model.safetensors"


@pytest.mark.parametrize(
    ("name", "kind", "mean", "size", "resize"),
    [
        ("vit_tiny_patch16_224", VisionTransformer, 0.5, 224, 248),
        ("deit_tiny_distilled_patch16_224", DeiT, 0.485, 224, 248),
        ("test_vit2", VisionTransformer, 0.5, 160, 168),
        ("test_efficientnet", Cnn, 0.485, 160, 168),
    ],
)
def test_from_a_file(name: str, kind: type[Any], mean: float, size: int, resize: int, tmp_path: Path) -> None:
    theirs, file = saved(name, tmp_path)
    loaded = load_reference(f"timm:{name}@{file}")
    assert type(loaded.model) is kind
    assert (loaded.card.image_size, loaded.card.num_classes, loaded.card.resize) == (size, 1000, resize)
    assert loaded.card.model.mean[0] == mean and loaded.card.classes == ()
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), theirs(images), atol=1e-5, rtol=0)


def test_from_the_hubs_cache(put: Put) -> None:
    theirs = timm.create_model("test_resnet").eval()
    put("timm/test_resnet.r160_in1k", {"model.safetensors": theirs.state_dict()})
    loaded = load_reference("timm:test_resnet")
    assert loaded.card.model == CnnConfig(name="timm/test_resnet")
    assert len(loaded.card.classes) == 1000 and loaded.card.classes[:2] == ("tench", "goldfish")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), theirs(images))


def test_a_cnn_of_timm_can_be_kept_and_trained_further(tmp_path: Path) -> None:
    _, file = saved("test_convnext", tmp_path, num_classes=3)
    loaded = load_reference(f"timm:test_convnext@{file}")
    save_pretrained(tmp_path / "kept", loaded.model, loaded.card)
    kept = load_pretrained(tmp_path / "kept")
    adapted = adapt(kept.model, num_classes=2, image_size=64)
    assert adapted(torch.randn(2, 3, 64, 64)).tolist() == [[0, 0], [0, 0]]
    assert adapted.layer_of("net.stem.0.weight") == 0 and adapted.layer_of("net.head.fc.weight") == adapted.num_layers


def test_other_networks_of_timm_are_only_asked(tmp_path: Path) -> None:
    theirs, file = saved("test_vit_relpos", tmp_path, num_classes=4)
    before = torch.random.get_rng_state()
    loaded = load_reference(f"timm:test_vit_relpos@{file}")
    assert torch.equal(torch.random.get_rng_state(), before), "asking for a teacher must not change what is drawn next"
    assert loaded.card.num_classes == 4 and loaded.card.image_size == 160
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), theirs(images))
    with pytest.raises(RequestError, match=r"timm:test_vit_relpos is only asked and cannot be trained or adapted"):
        adapt(loaded.model, num_classes=2)
    with pytest.raises(RequestError, match="the images are 96 x 96 pixels but timm:test_vit_relpos takes 160 x 160"):
        loaded.model(torch.randn(1, 3, 96, 96))


def test_files_with_another_librarys_names_go_through_timms_own_renaming(tmp_path: Path) -> None:
    from open_clip.transformer import VisionTransformer as Visual

    theirs = Visual(image_size=224, patch_size=16, width=256, layers=10, heads=4, mlp_ratio=4, output_dim=512).eval()
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file({f"visual.{key}": value for key, value in theirs.state_dict().items()}, file)
    before = torch.random.get_rng_state()
    loaded = load_reference(f"timm:vit_xsmall_patch16_clip_224.tinyclip_yfcc15m@{file}")
    assert torch.equal(torch.random.get_rng_state(), before), "reading weights must not change what is drawn next"
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), theirs(images), atol=1e-5, rtol=0)
    with pytest.raises(RequestError, match="the weights are not those of timm's test_vit"):
        load_reference(f"timm:test_vit@{file}")


def test_a_head_for_other_classes_and_an_image_of_another_size(tmp_path: Path) -> None:
    _, file = saved("test_vit", tmp_path, num_classes=3, img_size=96)
    loaded = load_reference(f"timm:test_vit@{file}")
    assert (loaded.card.image_size, loaded.card.num_classes, loaded.card.resize) == (96, 3, 101)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    _, file = saved("test_resnet", tmp_path)
    for name in ("test_convnext", "test_vit_relpos", "test_vit"):
        with pytest.raises(RequestError, match="the weights"):
            load_reference(f"timm:{name}@{file}")


@pytest.mark.parametrize("name", ["vit_enormous", "hf-hub:timm/test_vit", "local-dir:/tmp", "../vit"])
def test_names_that_timm_has_not(name: str) -> None:
    with pytest.raises(RequestError, match="timm has no model"):
        load_reference(f"timm:{name}")
    from vitcore.models import build

    with pytest.raises(RequestError, match="timm has no model"):
        build(CnnConfig(name=f"timm/{name}"), num_classes=2, image_size=64)


def test_transformers_of_timm_are_no_cnn() -> None:
    from vitcore.models import build

    with pytest.raises(RequestError, match="it takes images of one size"):
        build(CnnConfig(name="timm/test_vit"), num_classes=2, image_size=64)


def test_an_unreachable_hub_says_quickly_how_to_give_the_file(put: Put) -> None:
    begun = time.monotonic()
    with pytest.raises(RequestError, match=r"give the file: timm:vit_tiny_patch16_224@/path/to/model\.safetensors"):
        load_reference("timm:vit_tiny_patch16_224")
    assert time.monotonic() - begun < 5
    with pytest.raises(RequestError, match="timm has no weights for test_coatnet"):
        load_reference("timm:test_coatnet")


def test_timm_absent_or_given_a_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="pickled checkpoint"):
        load_reference("timm:vit_tiny_patch16_224@/tmp/vit.pth")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(RequestError, match="pip install timm"):
        load_reference("timm:vit_tiny_patch16_224")
