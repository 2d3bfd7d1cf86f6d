"""What the card of each kind of model says, and where the numbers of a report stand."""

from __future__ import annotations

import types

import pytest
import torch

from tasks import register
from tasks.on_mlflow.card import markdown
from vitcore.evals.report import Report
from vitcore.models import ModelCard, Pretrained, build
from vitcore.recipe import ClipConfig, ModelConfig, TextConfig, VitConfig

VIT = VitConfig(patch=8, width=16, depth=1, heads=2)
CLIP = ClipConfig(width=8, image=VIT, text=TextConfig(context=8, width=16, depth=1, heads=2))


def pretrained(config: ModelConfig, classes: tuple[str, ...] = ()) -> Pretrained:
    torch.manual_seed(0)
    model = build(config, num_classes=len(classes), image_size=16)
    return Pretrained(model, ModelCard(model=config, image_size=16, num_classes=len(classes), classes=classes), "d")


@pytest.mark.parametrize(
    ("config", "classes", "task", "always"),
    [
        (VIT, ("cat", "dog"), "Classifies photographs into 2 classes: cat, dog.", True),
        (VIT, (), "Turns photographs into features of 16 numbers.", False),
        (CLIP, (), "Embeds photographs and texts in one space of 8 dimensions.", False),
    ],
)
def test_a_card_says_what_its_model_does(
    config: ModelConfig, classes: tuple[str, ...], task: str, always: bool
) -> None:
    card = register._card("n", pretrained(config, classes), {}, scores=(), split="", remarks=())
    text = markdown(card)
    assert task in text
    assert ("always answers with one of its classes" in text) == always


def test_numbers_of_another_protocol_do_not_stand_where_the_heads_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert register.place_of(report("classifier")) == "test"
    assert register.place_of(report("knn")) == "test/knn"
    tags: dict[str, str] = {}
    texts: list[str] = []
    monkeypatch.setattr(register.registry, "describe_version", lambda *given: texts.append(given[-1]))
    monkeypatch.setattr(register.registry, "tag_version", lambda uri, version, new: tags.update(new))
    monkeypatch.setattr(register.runs, "log_text", lambda *given: None)
    version = types.SimpleNamespace(name="n", tags={}, run_id="r", uri="models:/n/1")
    settings = types.SimpleNamespace(tracking_uri="")
    register.describe(settings, version, pretrained(VIT), report("knn"))  # type: ignore[arg-type]
    assert set(tags) == {"test/knn/top1"}
    assert "by the 20 nearest training photographs" in texts[0]


def report(protocol: str) -> Report:
    tree = {"model": "m", "dataset": "d", "split": "test", "protocol": protocol, "samples": 4, "per_class": []}
    scores = {"metrics": {"top1": {"value": 0.5, "low": 0.1, "high": 0.9, "n": 4}}, "classes": [], "confusion": []}
    return Report.model_validate(tree | scores)
