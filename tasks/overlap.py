"""The overlap of a test split with what a model was trained on: found beside the dataset, or looked for and kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tasks.on_mlflow.lineage import Ancestor, lineage
from tasks.on_mlflow.registry import DATASET
from tasks.register import DATA_URL
from tasks.settings import Settings
from tasks.story import tell, track
from vitcore.data.audit.overlap import Overlap, find, keep, leakage
from vitcore.data.dataset.manifest import Dataset, DatasetRef
from vitcore.errors import RequestError, WorkError
from vitcore.evals.outcomes import Outcomes
from vitcore.evals.overlap import training_overlap
from vitcore.evals.report import TrainingOverlap
from vitcore.models.pretrained import Pretrained

MOST = 2_000_000
"""Photographs on both sides up to which copies are looked for during an evaluation: about ten seconds."""
_USUAL = "train"  # split that ancestors were trained on; their own recipes are not fetched for it


class Trained(NamedTuple):
    """A dataset version, and the split of it, that a model was trained on."""

    data: DatasetRef
    split: str


def measure_overlap(
    settings: Settings, ref: str, model: Pretrained, dataset: Dataset, split: str, outcomes: Outcomes
) -> TrainingOverlap | None:
    """What of a split the model, or one it was made from, was trained on; None where its training is not recorded."""
    if not ref.startswith("models:"):
        return None
    recipe = model.card.recipe
    trained = list(
        dict.fromkeys(_trained(lineage(settings.tracking_uri, ref), recipe.data.train_split if recipe else _USUAL))
    )
    if not trained:
        return None
    overlaps, missing = [], []
    for one in trained:
        try:
            overlaps.append(_overlap(settings, dataset, split, one))
        except (RequestError, WorkError) as error:
            missing.append(f"Not compared with the training photographs of {one.data.url}: {error}.")
    return training_overlap(dataset, split, outcomes, overlaps, missing)


def _trained(node: Ancestor, split: str) -> Iterator[Trained]:
    """What a model and all it was made from were trained on; a teacher passes on what it knows, too."""
    tags = node.version.tags if node.version else {}
    if tags.get(DATASET) and tags.get(DATA_URL):
        yield Trained(DatasetRef(url=tags[DATA_URL], digest=tags[DATASET]), split)
    for ancestor in node.ancestors:
        yield from _trained(ancestor, _USUAL)


def _overlap(settings: Settings, dataset: Dataset, split: str, trained: Trained) -> Overlap:
    kept = find(dataset, split, trained.data.digest, (trained.split,))
    if kept is not None:
        return kept
    training = Dataset.open(trained.data)
    photographs = dataset.split(split).samples + training.split(trained.split).samples
    if photographs > MOST:
        raise RequestError(
            f"{photographs:,} photographs take a while; run: "
            f"vit audit {dataset.url} --against {training.url} --split {split} --trained {trained.split}"
        )
    with track(settings, f"comparing {split} with training photographs", None, "passes") as shown:
        overlap = leakage(dataset, split, training, (trained.split,), progress=shown.update)
    try:
        keep(overlap, dataset)
    except WorkError as error:
        tell(settings, str(error))
    return overlap
