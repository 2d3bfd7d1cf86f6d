"""Each export is loaded by the library it is for, and says the same there."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import open_clip
import pytest
import timm
import torch
import transformers
from timm.data import create_transform, resolve_data_config

from vitcore.errors import RequestError
from vitcore.models import ModelCard, Pretrained, build, load_pretrained, load_reference, wrap
from vitcore.models.clip import Clip
from vitcore.models.export import FORMATS, Format, export
from vitcore.models.pretrained import weights_digest
from vitcore.models.tokenizer import Tokenizer
from vitcore.recipe import (
    ClipConfig,
    CnnConfig,
    DeitConfig,
    MixerConfig,
    ModelConfig,
    PvtConfig,
    T2tConfig,
    TextConfig,
    VitConfig,
)

SMALL: dict[str, Any] = {
    "patch": 8,
    "width": 32,
    "depth": 2,
    "heads": 4,
    "mean": (0.4, 0.5, 0.6),
    "std": (0.2, 0.3, 0.4),
}
TOWER = VitConfig(**SMALL, pre_norm=True, patch_bias=False, norm_eps=1e-5)
PAIR = ClipConfig(width=24, image=TOWER, text=TextConfig(width=32, depth=2, heads=2))
BIRDS = ("wren", "owl", "crow")


def pretrained(config: ModelConfig, classes: tuple[str, ...] = BIRDS, size: int = 32, **card: Any) -> Pretrained:
    torch.manual_seed(0)
    model = build(config, num_classes=len(classes), image_size=size).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim():
                parameter.add_(torch.randn_like(parameter) * (0.01 if isinstance(config, CnnConfig) else 0.1))
    described = ModelCard(model=config, image_size=size, num_classes=model.num_classes, classes=classes, **card)
    return Pretrained(model, described, weights_digest(model.state_dict()))


@pytest.fixture(scope="module")
def vit() -> Pretrained:
    return pretrained(VitConfig(**SMALL), resize=36)


@pytest.fixture(scope="module")
def pair() -> Pretrained:
    return pretrained(PAIR, ())


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32)


def normalised(model: Pretrained, images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (model.card.model.mean, model.card.model.std))
    return (images - mean) / std


@pytest.mark.parametrize(
    ("config", "classes"),
    [
        (VitConfig(**SMALL), BIRDS),
        (VitConfig(**SMALL), ()),
        (VitConfig(**SMALL, pooling="mean", registers=2, layer_scale=0.1, qk_norm=True), BIRDS),
        (DeitConfig(**SMALL), BIRDS),
        (MixerConfig(patch=32, width=512, depth=8), BIRDS),
        (PvtConfig(widths=(8, 16, 24, 32), depths=(1, 1, 1, 1), heads=(1, 2, 3, 4)), BIRDS),
        (CnnConfig(name="timm/test_resnet"), BIRDS),
    ],
)
def test_timm_loads_it(config: ModelConfig, classes: tuple[str, ...], images: torch.Tensor, tmp_path: Path) -> None:
    ours = pretrained(config, classes, resize=36)
    done = export(ours, tmp_path / "out", "timm")
    assert done.files == ("config.json", "model.safetensors")
    assert done.use == f"timm.create_model('local-dir:{tmp_path / 'out'}', pretrained=True)"
    theirs = timm.create_model(f"local-dir:{done.folder}", pretrained=True).eval()
    seen = normalised(ours, images)
    with torch.no_grad():
        torch.testing.assert_close(theirs(seen), ours.model(seen), atol=1e-5, rtol=0)
    told = resolve_data_config({}, model=theirs)
    assert (told["crop_pct"], tuple(told["mean"])) == (32 / 36, ours.card.model.mean)
    assert create_transform(**told).transforms[0].size == 36
    assert theirs.pretrained_cfg.get("label_names") == (list(classes) or None)


def test_transformers_loads_a_classifier(vit: Pretrained, images: torch.Tensor, tmp_path: Path) -> None:
    done = export(vit, tmp_path / "out", "hf")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(done.folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(done.folder)
    assert theirs.config.id2label == {0: "wren", 1: "owl", 2: "crow"} and theirs.config.label2id["owl"] == 1
    photograph = np.zeros((50, 40, 3), np.uint8) + 255
    prepared = processor(photograph, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(prepared, normalised(vit, torch.ones(1, 3, 32, 32)), atol=1e-5, rtol=0)
    seen = normalised(vit, images)
    with torch.no_grad():
        torch.testing.assert_close(theirs(seen).logits, vit.model(seen), atol=1e-5, rtol=0)
    again = load_reference(f"hf:{done.folder}")
    assert again.digest == vit.digest and again.card == vit.card


def test_transformers_loads_a_deit(images: torch.Tensor, tmp_path: Path) -> None:
    ours = pretrained(DeitConfig(**SMALL))
    done = export(ours, tmp_path / "out", "hf")
    assert done.use.startswith("transformers.DeiTForImageClassificationWithTeacher.from_pretrained(")
    theirs = transformers.DeiTForImageClassificationWithTeacher.from_pretrained(done.folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(images).logits, ours.model(images), atol=1e-5, rtol=0)


def test_transformers_loads_a_clip_with_its_tokenizer(pair: Pretrained, images: torch.Tensor, tmp_path: Path) -> None:
    done = export(pair, tmp_path / "out", "hf")
    theirs = transformers.CLIPModel.from_pretrained(done.folder).eval()
    processor = transformers.CLIPProcessor.from_pretrained(done.folder)
    texts = ["a wren", "an owl, it's on a BRANCH · 42"]
    tokens = processor(text=texts, return_tensors="pt", padding=True)["input_ids"]
    ours = Tokenizer(PAIR.text)(texts)
    longest = int(ours.argmax(1).max()) + 1
    assert torch.equal(tokens[1], ours[1, :longest]) and tokens.shape[1] == longest
    assert isinstance(pair.model, Clip)
    with torch.no_grad():
        said = theirs(input_ids=tokens, pixel_values=images)
        torch.testing.assert_close(said.image_embeds, pair.model.embed_images(images), atol=1e-5, rtol=0)
        torch.testing.assert_close(said.text_embeds, pair.model.embed_texts(ours), atol=1e-5, rtol=0)


def test_open_clip_loads_it(pair: Pretrained, images: torch.Tensor, tmp_path: Path) -> None:
    done = export(pair, tmp_path / "out", "open_clip")
    theirs, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{done.folder}")
    texts = open_clip.tokenize(["a wren", "an owl on a branch"])
    assert isinstance(pair.model, Clip)
    with torch.no_grad():
        said = theirs.eval()(images, texts)
        torch.testing.assert_close(said[0], pair.model.embed_images(images), atol=1e-5, rtol=0)
        torch.testing.assert_close(said[1], pair.model.embed_texts(texts), atol=1e-5, rtol=0)
    assert tuple(prepare.transforms[-1].mean) == pair.card.model.mean


def test_onnx_takes_pixels_and_batches_of_any_size(vit: Pretrained, images: torch.Tensor, tmp_path: Path) -> None:
    done = export(vit, tmp_path / "out", "onnx")
    assert done.files == ("model.onnx",)
    session = onnxruntime.InferenceSession(done.folder / "model.onnx")
    with torch.no_grad():
        expected = vit.model(normalised(vit, images)).numpy()
    for count in (1, 3):
        (logits,) = session.run(["logits"], {"images": images[:count].numpy()})
        np.testing.assert_allclose(logits, expected[:count], atol=1e-4, rtol=0)
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["classes"]) == list(BIRDS)
    assert (told["image_size"], told["resize"], told["digest"]) == ("32", "36", vit.digest)


def test_onnx_of_a_clip_is_two_graphs(pair: Pretrained, images: torch.Tensor, tmp_path: Path) -> None:
    done = export(pair, tmp_path / "out", "onnx")
    assert done.files == ("image.onnx", "text.onnx")
    tokens = Tokenizer(PAIR.text)(["a wren"])
    assert isinstance(pair.model, Clip)
    with torch.no_grad():
        expected = (pair.model(normalised(pair, images)).numpy(), pair.model.embed_texts(tokens).numpy())
    for graph, fed, told in zip(
        ("image", "text"), ({"images": images.numpy()}, {"tokens": tokens.numpy()}), expected, strict=True
    ):
        session = onnxruntime.InferenceSession(done.folder / f"{graph}.onnx")
        np.testing.assert_allclose(session.run(["embeddings"], fed)[0], told, atol=1e-4, rtol=0)
        scale = float(session.get_modelmeta().custom_metadata_map["logit_scale"])
        assert scale == pytest.approx(1 / 0.07)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        DeitConfig(**SMALL),
        VitConfig(**SMALL, pooling="map", registers=1),
        MixerConfig(patch=8, width=32, depth=2),
        PvtConfig(widths=(8, 16, 24, 32), depths=(1, 1, 1, 1), heads=(1, 2, 3, 4)),
        T2tConfig(width=32, depth=1, heads=2),
        CnnConfig(name="timm/test_resnet"),
        CnnConfig(name="resnet18"),
    ],
)
def test_onnx_holds_every_architecture(config: ModelConfig, images: torch.Tensor, tmp_path: Path) -> None:
    ours = pretrained(config)
    done = export(ours, tmp_path / "out", "onnx")
    session = onnxruntime.InferenceSession(done.folder / "model.onnx")
    with torch.no_grad():
        expected = ours.model(normalised(ours, images)).numpy()
    for count in (1, 3):
        (logits,) = session.run(None, {"images": images[:count].numpy()})
        np.testing.assert_allclose(logits, expected[:count], atol=1e-4, rtol=0)


def test_our_own_folder(vit: Pretrained, tmp_path: Path) -> None:
    done = export(vit, tmp_path / "deep" / "out", "safetensors")
    assert load_pretrained(done.folder).digest == vit.digest
    assert done.use == f"vitcore.models.load_pretrained({str(done.folder)!r})"


@pytest.mark.parametrize(
    ("config", "fmt", "complaint"),
    [
        (VitConfig(**SMALL), "open_clip", "open_clip holds image and text models, and this is a vit"),
        (VitConfig(**SMALL, pooling="mean"), "hf", "transformers' ViT does not compute pooling 'mean'"),
        (MixerConfig(patch=8, width=32, depth=1), "timm", "timm has no mixer of these sizes by name"),
        (T2tConfig(width=32, depth=1, heads=2), "timm", "timm has no counterpart of a t2t"),
        (T2tConfig(width=32, depth=1, heads=2), "hf", "transformers has no t2t like ours"),
        (CnnConfig(name="resnet18"), "timm", "timm's resnet18 is not the network of that name here"),
        (PAIR, "timm", "timm has no counterpart of a clip"),
    ],
)
def test_what_a_format_cannot_hold(config: ModelConfig, fmt: Format, complaint: str, tmp_path: Path) -> None:
    classes = () if isinstance(config, ClipConfig) else BIRDS
    with pytest.raises(RequestError, match=complaint):
        export(pretrained(config, classes), tmp_path / "out", fmt)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over_and_nothing_half(
    vit: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for fmt in FORMATS:
        with pytest.raises(RequestError, match="mine is there already; give a new folder, or remove it first"):
            export(vit, tmp_path / "mine", fmt)
    (tmp_path / "empty").mkdir()
    assert export(vit, tmp_path / "empty", "safetensors").files == ("config.json", "model.safetensors")

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("vitcore.models.export.folders.safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        export(vit, tmp_path / "out", "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "mine"]


def test_what_is_only_asked_is_not_exported(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
    teacher = wrap(net, image_size=8, mean=(0, 0, 0), std=(1, 1, 1), name="mine")
    with pytest.raises(RequestError, match="mine is only asked: export it where it was made"):
        export(teacher, tmp_path / "out", "onnx")


def test_onnx_without_its_packages(vit: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name == "onnxscript":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RequestError, match=r"pip install 'vitcore\[onnx\]'"):
        export(vit, tmp_path / "out", "onnx")
