"""open_clip's models by architecture and tag: from the hub's cache or a file; tags without safetensors are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch

from vitcore.errors import RequestError
from vitcore.models import load_reference
from vitcore.models.clip import Clip

Put = Callable[[str, Mapping[str, Any]], Path]

SMALL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """open_clip with a small ViT-B-32, whose tags are the real ones."""
    real = open_clip.get_model_config
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: dict(SMALL) if name == "ViT-B-32" else real(name))
    torch.manual_seed(0)
    return open_clip.CLIP(**SMALL).eval()


def test_from_the_hubs_cache_and_a_file(small: torch.nn.Module, put: Put, tmp_path: Path) -> None:
    put("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", {"open_clip_model.safetensors": small.state_dict()})
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({key: value.contiguous() for key, value in small.state_dict().items()}, file)
    images, texts = torch.randn(2, 3, 32, 32), open_clip.tokenize(["a wren", "an owl on a branch"])
    for ref in ("open_clip:ViT-B-32/laion2b_s34b_b79k", f"open_clip:ViT-B-32@{file}"):
        loaded = load_reference(ref)
        assert isinstance(loaded.model, Clip)
        assert (loaded.card.image_size, loaded.card.resize, loaded.card.num_classes) == (32, 32, 0)
        assert loaded.card.model.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
        with torch.no_grad():
            said = small.encode_image(images, normalize=True), small.encode_text(texts, normalize=True)
            torch.testing.assert_close(loaded.model.embed_images(images), said[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(loaded.model.embed_texts(texts), said[1], atol=1e-5, rtol=0)


def test_the_tag_says_the_activation(small: torch.nn.Module, put: Put) -> None:
    put("timm/vit_base_patch32_clip_224.openai", {"open_clip_model.safetensors": small.state_dict()})
    loaded = load_reference("open_clip:ViT-B-32/openai")
    theirs = open_clip.CLIP(**SMALL, quick_gelu=True).eval()
    theirs.load_state_dict(small.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        said = theirs.encode_image(images, normalize=True)
        torch.testing.assert_close(loaded.model(images), said, atol=1e-5, rtol=0)


def test_what_cannot_be_had(put: Put, tmp_path: Path) -> None:
    for ref, complaint in {
        "open_clip:ViT-Z-1/openai": "no architecture 'ViT-Z-1'",
        "open_clip:ViT-B-32": "name the weights of ViT-B-32: open_clip:ViT-B-32/TAG with one of openai, ",
        "open_clip:ViT-B-32/misspelt": "name the weights of ViT-B-32",
        "open_clip:ViT-B-32/laion2b_s34b_b79k": r"give the file: open_clip:ViT-B-32/laion2b_s34b_b79k@/path/to/",
        "open_clip:ViT-M-16": "publishes no weights for ViT-M-16",
        f"open_clip:ViT-B-32@{tmp_path}/weights.pt": "is a pickled checkpoint",
    }.items():
        with pytest.raises(RequestError, match=complaint):
            load_reference(ref)
