"""What a training is asked to do and what it answers: small frozen values that cross process borders as JSON."""

from __future__ import annotations

from collections.abc import Sequence

from vitcore.data.dataset.manifest import Dataset, DatasetRef
from vitcore.data.loading.mixture import Mixture
from vitcore.duration import parse
from vitcore.errors import RequestError
from vitcore.recipe import Compute, Config, LabelConfig, Recipe


class TrainRequest(Config):
    """One training: a recipe, its inputs and how to run it."""

    recipe: Recipe
    compute: Compute = Compute()
    data: DatasetRef
    """The dataset version to train on; validation is on its split."""
    mixture: tuple[DatasetRef, ...] = ()
    """Dataset versions mixed in, by the weights of `recipe.data.mixture`."""
    init: str | None = None
    """Model to start from: a folder written by `save_pretrained`, or a public reference such as ``timm:NAME``."""
    teacher: str | None = None
    """Model to distil from, named the same way."""
    teacher_outputs: str | None = None
    """URL of that model's stored outputs for this training (`store_outputs`), by which it need not be asked."""
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
    """A dataset version with the splits, labels and captions that a recipe needs.

    Raises:
        RequestError: a split is missing or empty, or the dataset has no labels or captions where they are needed.
    """
    validation = (recipe.eval.split,) if recipe.validates else ()
    return _opened(recipe, ref, recipe.data.train_split, *validation, labels=recipe.needs_labels)


def open_mixture(recipe: Recipe, dataset: Dataset, refs: Sequence[DatasetRef]) -> Mixture:
    """A training's datasets as one: that of `open_dataset` and those mixed in, if any.

    Validation looks at the first one: those mixed in need labels only where the objective learns from them.

    Raises:
        RequestError: a split is missing or empty, a dataset has no labels, the weights are not as many as the datasets,
            or the recipe counts in epochs, which a mixture does not have.
    """
    labels = isinstance(recipe.objective, LabelConfig)
    mixed_in = (_opened(recipe, ref, recipe.data.train_split, labels=labels) for ref in refs)
    mixture = Mixture([dataset, *mixed_in], recipe.data.mixture)
    durations = {"train.duration": recipe.train.duration, "optim.warmup": recipe.optim.warmup}
    for field, duration in (durations | {"eval.every": recipe.eval.every}).items():
        if not mixture.is_single and parse(duration).unit == "epochs":
            raise RequestError(f"{field} is {duration!r}, but a mixture has no epochs; give it in steps or samples")
    return mixture


def _opened(recipe: Recipe, ref: DatasetRef, *splits: str, labels: bool) -> Dataset:
    dataset = Dataset.open(ref)
    needed = {"label": labels, "captions": recipe.data.captions}
    dataset.require(*(field for field, wanted in needed.items() if wanted))
    for split in splits:
        if dataset.split(split).samples == 0:
            raise RequestError(f"split {split!r} of {dataset.url} is empty; ingest again with a larger share for it")
    return dataset
