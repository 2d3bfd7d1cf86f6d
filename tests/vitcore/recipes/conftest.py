"""What the recipes learn from in the tests: photographs with captions, a parent and a teacher."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.vitcore.recipes.shrinking import SIDE
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.ingest.ingest import ingest
from vitcore.data.ingest_config import IngestConfig
from vitcore.models import build
from vitcore.models.pretrained import ModelCard, save_pretrained
from vitcore.recipe import DeitConfig, Recipe, VitConfig


@pytest.fixture(scope="session")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """40 photographs that say in two captions each which colour they have; 24 to train on, 16 to validate."""
    root = tmp_path_factory.mktemp("captioned")
    rng = np.random.default_rng(11)
    lines = ["image,split,caption"]
    for number in range(40):
        colour = number % 3
        pixels = rng.integers(0, 160, (5, 5, 3))
        pixels[:, :, colour] += 90
        Image.fromarray(pixels.astype(np.uint8)).resize((40, 36)).save(root / f"{number}.png")
        said = ("red", "green", "blue")[colour]
        split = "train" if number < 24 else "val"
        lines += [f"{number}.png,{split},a {said} square", f"{number}.png,{split},number {number} is {said}"]
    (root / "captions.csv").write_text("\n".join(lines) + "\n")
    return Dataset.open(ingest(str(root / "captions.csv"), str(root / "dataset"), IngestConfig()))


@pytest.fixture(scope="session")
def models(toy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of small models of the toy's classes: a ViT and a DeiT to start from, and a ViT to follow."""
    root = tmp_path_factory.mktemp("models")
    small = {"patch": 8, "width": 32, "depth": 2, "heads": 2}
    configs = {"vit": VitConfig(**small), "deit": DeitConfig(**small), "teacher": VitConfig(**small, pooling="mean")}
    for seed, (name, config) in enumerate(configs.items()):
        torch.manual_seed(seed)
        model = build(config, num_classes=3, image_size=SIDE)
        card = ModelCard(
            model=config,
            image_size=SIDE,
            num_classes=3,
            classes=toy.manifest.classes,
            recipe=Recipe(name=name),
            dataset=toy.digest,
            resize=SIDE,
        )
        save_pretrained(root / name, model, card)
    return {name: str(root / name) for name in configs}
