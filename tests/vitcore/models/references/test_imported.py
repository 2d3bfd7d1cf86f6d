"""A function of one's own gives a model that is asked and nothing more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vitcore.errors import RequestError
from vitcore.models import ModelCard, Pretrained, adapt, build, load_pretrained, load_reference, save_pretrained
from vitcore.models.described import described
from vitcore.recipe import VitConfig

MODULE = """
import torch
from vitcore.models import wrap

STATISTICS = {"image_size": 8, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


class Net(torch.nn.Module):
    def __init__(self, columns):
        super().__init__()
        self.linear = torch.nn.Linear(3, columns)
        with torch.no_grad():
            self.linear.weight.copy_(torch.arange(3.0 * columns).view(columns, 3))

    def forward(self, images):
        return self.linear(images.mean((2, 3)))


class Shouting(Net):
    def forward(self, images):
        return {"logits": super().forward(images)}


def teacher():
    torch.manual_seed(0)
    return wrap(Net(2), classes=("wren", "owl"), resize=9, **STATISTICS)


def backbone():
    return wrap(Net(5), head=False, **STATISTICS)


def shouting():
    return wrap(Shouting(2), **STATISTICS)


def misnamed():
    return wrap(Net(2), classes=("wren",), **STATISTICS)


def bare():
    return Net(2)


constant = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imported_teachers.py").write_text(MODULE)
    (tmp_path / "imported_broken.py").write_text("import a_package_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_teacher_of_ones_own() -> None:
    loaded = load_reference("import:imported_teachers:teacher")
    assert isinstance(loaded, Pretrained)
    assert loaded.card.classes == ("wren", "owl")
    assert (loaded.card.image_size, loaded.card.resize, loaded.card.num_classes) == (8, 9, 2)
    assert loaded.classifier.config.std == (0.25, 0.25, 0.25)
    assert described(loaded.card.model) == "import:imported_teachers:teacher, only asked"
    images = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(loaded.model(images), loaded.model.net(images))
    assert load_reference("import:imported_teachers:teacher").digest == loaded.digest
    assert not loaded.model.training


def test_a_backbone_of_ones_own_gives_features() -> None:
    loaded = load_reference("import:imported_teachers:backbone")
    assert (loaded.classifier.num_classes, loaded.classifier.width) == (0, 5)
    assert loaded.model(torch.rand(2, 3, 8, 8)).shape == (2, 5)


def test_it_is_asked_and_nothing_more(tmp_path: Path) -> None:
    loaded = load_reference("import:imported_teachers:teacher")
    with pytest.raises(RequestError, match="import:imported_teachers:teacher is only asked and cannot be trained"):
        adapt(loaded.model, num_classes=3)
    with pytest.raises(RequestError, match="cannot get another head"):
        loaded.classifier.reset_head(3)
    with pytest.raises(RequestError, match="cannot take images of several sizes"):
        loaded.classifier.allow_any_size()
    with pytest.raises(RequestError, match="only asked and cannot be saved; keep the file or name it came from"):
        save_pretrained(tmp_path, loaded.model, loaded.card)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_card_cannot_run_code(tmp_path: Path) -> None:
    model = build(VitConfig(patch=4, width=8, depth=1, heads=2), num_classes=2, image_size=8)
    card = ModelCard(model=model.config, image_size=8, num_classes=2, classes=("wren", "owl"))
    save_pretrained(tmp_path, model, card)
    written = json.loads((tmp_path / "config.json").read_text())
    written["model"] = {"kind": "asked", "name": "import:imported_teachers:teacher"}
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(RequestError, match="is only asked: a model of 2 classes for 8 pixels cannot be built"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("ref", "complaint"),
    [
        ("import:imported_teachers", "names no function"),
        ("import:imported_teachers:a.b", "names no function"),
        ("import:imported_teachers:teacher@file", "names no function"),
        (
            "import:imported_absent:teacher",
            "there is no module imported_absent; put the folder it lies in on PYTHONPATH",
        ),
        ("import:imported_teachers:absent", "has no function absent"),
        ("import:imported_teachers:constant", "has no function constant"),
        ("import:imported_teachers:bare", "returns Net; let it return what vitcore.models.wrap"),
        ("import:imported_teachers:shouting", "answers two images with dict"),
        ("import:imported_teachers:misnamed", "has 2 logits but 1 class names"),
    ],
)
def test_what_is_no_such_function(ref: str, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        load_reference(ref)


def test_what_the_module_lacks_is_said_in_its_own_words() -> None:
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        load_reference("import:imported_broken:teacher")
