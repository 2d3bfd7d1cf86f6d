"""Parts of a recipe that do not fit together are one sentence that says what to change."""

from __future__ import annotations

from typing import Any

import pytest

from vitcore.errors import RequestError
from vitcore.recipe import Recipe, apply_overrides, parse
from vitcore.recipes import find


@pytest.mark.parametrize(
    ("recipe", "overrides", "sentence"),
    [
        (
            "vit_tiny_cpu",
            {"eval.metric": "knn"},
            "eval.metric 'knn' is not known of the objective classify; take top1",
        ),
        ("moco_tiny_cpu", {"eval.metric": "top1"}, "take knn or last"),
        ("moco_tiny_cpu", {"data.views": []}, "MoCo v3 compares two views of a photograph, not 1: set data.views"),
        ("dino_tiny_cpu", {"objective.global_views": 99}, "objective.global_views must be at least 2 and at most the"),
        ("dino_tiny_cpu", {"train.ema_decay": 0.99}, "an average of the weights already: set train.ema_decay to none"),
        ("clip_tiny_cpu", {"data.captions": False}, "learns from captions: set data.captions"),
        (
            "clip_tiny_cpu",
            {"data.augment.mixup": 0.2},
            "Mixup and CutMix mix labels, which the objective contrast",
        ),
    ],
)
def test_what_does_not_fit_is_said(recipe: str, overrides: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError) as error:
        apply_overrides(find(recipe), overrides)
    assert sentence in str(error.value)


@pytest.mark.parametrize(("model", "objective"), [("vit", "contrast"), ("clip", "classify")])
def test_an_image_and_text_model_goes_with_captions_alone(model: str, objective: str) -> None:
    tree = {"name": "a", "model": {"kind": model}, "objective": {"kind": objective}, "data": {"captions": True}}
    tree["eval"] = {"metric": "loss"}
    with pytest.raises(RequestError, match=f"the objective {objective} does not train a {model}"):
        parse(Recipe, tree)
