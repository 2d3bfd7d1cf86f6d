"""`vit export`: what it writes, what it says, and how it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import timm

from flows.cli.main import main
from vitcore.models import ModelCard, build, load_pretrained, save_pretrained
from vitcore.recipe import VitConfig


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kept model in the current folder, and its digest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "VIT_HOME", str(tmp_path / ".vit"))
    monkeypatch.setitem(os.environ, "COLUMNS", "300")
    config = VitConfig(patch=8, width=32, depth=1, heads=2)
    network = build(config, num_classes=2, image_size=16)
    card = ModelCard(model=config, image_size=16, num_classes=2, classes=("wren", "owl"))
    return save_pretrained(tmp_path / "model", network, card)


def test_a_folder_for_timm(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "model", "out", "--to", "timm", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {
        "model": "model",
        "digest": model,
        "format": "timm",
        "folder": str(tmp_path / "out"),
        "files": ["config.json", "model.safetensors"],
        "use": f"timm.create_model('local-dir:{tmp_path}/out', pretrained=True)",
    }
    assert timm.create_model(f"local-dir:{tmp_path}/out", pretrained=True).num_classes == 2


def test_a_registered_version_is_fetched_first(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def fetch(tracking_uri: str, ref: str, cache: Path) -> Path:
        asked.append(ref)
        return tmp_path / "model"

    monkeypatch.setattr("tasks.models.logged.fetch", fetch)
    assert main(["export", "models:/birds@champion", "copy", "--to", "safetensors"]) == 0
    assert asked == ["models:/birds@champion"]
    assert load_pretrained(tmp_path / "copy").digest == model
    shown = capsys.readouterr().out
    assert "vitcore.models.load_pretrained(" in shown and "config.json, model.safetensors" in shown


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("export model out", "missing --to"),
        ("export model out --to tflite", "--to takes one of safetensors, timm, hf, open_clip, onnx, not 'tflite'"),
        ("export model model --to hf", "model is there already; give a new folder, or remove it first"),
        ("export model out --to open_clip", "open_clip holds image and text models, and this is a vit"),
        ("export absent out --to hf", "absent is no model"),
    ],
)
def test_a_wrong_request_is_one_sentence(line: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    shown = capsys.readouterr()
    assert complaint in shown.err and shown.err.count("\n") == 1 and not shown.out
    assert not Path("out").exists()


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", "--help"])
    assert ended.value.code == 0
    assert "vit export models:/birds@champion birds-hf --to hf" in capsys.readouterr().out
