"""What is planned in the tests: a training of every way of learning, small but not tiny."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.vitcore.recipes.shrinking import shrink
from vitcore.data.dataset.manifest import Dataset
from vitcore.estimate.subject import Subject, subject
from vitcore.models import build
from vitcore.models.pretrained import ModelCard, save_pretrained
from vitcore.recipe import CnnConfig, Compute, Recipe, parse
from vitcore.recipes import find
from vitcore.train.request import TrainRequest

RECIPES = {
    "vit": "vit_s16",
    "deit": "deit_s16",
    "cnn": "cnn_tiny_cpu",
    "hybrid": "hybrid_r50_b16",
    "mixer": "mixer_b16",
    "t2t": "t2t_14",
    "pvt": "pvt_v2_b0",
    "clip": "clip_b32",
    "moco": "moco_v3_s16",
    "dino": "dino_s16",
    "mae": "mae_b16",
}
_SIZES: dict[str, dict[str, Any]] = {
    "vit": {"width": 128, "depth": 4, "heads": 4},
    "deit": {"width": 128, "depth": 4, "heads": 4},
    "hybrid": {"width": 128, "depth": 4, "heads": 4},
    "mixer": {"width": 128, "depth": 4},
    "t2t": {"width": 128, "depth": 4, "heads": 4, "token_width": 32},
    "pvt": {"widths": (16, 32, 64, 64), "heads": (1, 2, 2, 2)},
    "cnn": {},
    "clip": {},
}
Plannable = Callable[..., Subject]


def middling(name: str, batch_size: int) -> Recipe:
    """A recipe of its kind with activations of some tens of megabytes."""
    tree = shrink(find(RECIPES[name])).model_dump(mode="json")
    tree["model"] |= _SIZES[tree["model"]["kind"]]
    if tree["model"]["kind"] == "clip":
        tree["model"]["image"] |= _SIZES["vit"]
        tree["model"]["text"] |= {"width": 64, "depth": 2}
    tree["train"]["batch_size"] = batch_size
    return parse(Recipe, tree)


@pytest.fixture(scope="session")
def teacher(toy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A ResNet-18 of the toy's classes."""
    folder = tmp_path_factory.mktemp("teacher") / "cnn"
    config = CnnConfig(name="resnet18")
    card = ModelCard(
        model=config,
        image_size=32,
        num_classes=3,
        classes=toy.manifest.classes,
        recipe=Recipe(name="cnn"),
        dataset=toy.digest,
        resize=32,
    )
    save_pretrained(folder, build(config, num_classes=3, image_size=32), card)
    return str(folder)


@pytest.fixture
def plannable(toy: Dataset, captioned: Dataset, teacher: str) -> Plannable:
    """`plannable(name, batch_size, **compute)`: a training before it runs."""

    def make(name: str, batch_size: int = 32, **compute: Any) -> Subject:
        recipe = middling(name, batch_size)
        how = {"threads": 1, "precision": "fp32", "loader_workers": 1}
        return subject(
            TrainRequest(
                recipe=recipe,
                compute=Compute(**how | compute),
                data=(captioned if recipe.data.captions else toy).ref,
                teacher=teacher if recipe.objective.kind == "distill" else None,
                checkpoints="unused",
            )
        )

    return make
