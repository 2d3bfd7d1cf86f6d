"""What a training is asked to do and what it answers: small frozen values that cross process borders as JSON."""

from __future__ import annotations

from vitcore.data.manifest import Dataset, DatasetRef
from vitcore.errors import RequestError
from vitcore.recipe import Compute, Config, Recipe


class TrainRequest(Config):
    """One training: a recipe, its inputs and how to run it."""

    recipe: Recipe
    compute: Compute = Compute()
    data: DatasetRef
    """The dataset version to train on."""
    init: str | None = None
    """Model to start from: a folder written by `save_pretrained`, or a public reference such as ``timm:NAME``."""
    teacher: str | None = None
    """Model to distil from, named the same way."""
    checkpoints: str
    """URL of the folder that holds this training's checkpoints and its product."""
    identity: str = ""
    """Name of the product; a checkpoint of another identity is refused."""


class TrainResult(Config):
    """What came out."""

    model: str
    """URL of the folder with the best model: `model.safetensors` and `config.json`."""
    step: int
    """Steps trained."""
    best_step: int
    """Step of the best model."""
    metrics: dict[str, float]
    """Its validation metrics."""
    skipped: tuple[int, ...] = ()
    """Steps whose update was dropped because loss or gradient was not finite."""


def open_dataset(recipe: Recipe, ref: DatasetRef) -> Dataset:
    """A dataset version with the splits and labels that a recipe needs.

    Raises:
        RequestError: a split is missing or empty, or the dataset has no labels.
    """
    dataset = Dataset.open(ref)
    dataset.require("label")
    for split in (recipe.data.train_split, recipe.eval.split):
        if dataset.split(split).samples == 0:
            raise RequestError(f"split {split!r} of {dataset.url} is empty; ingest again with a larger share for it")
    return dataset
