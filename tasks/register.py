"""Register a trained model with all that says what it is, and keep its card in step with what is known of it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import vitcore
from tasks.models import ModelRef
from tasks.on_mlflow import models as logged
from tasks.on_mlflow import registry, runs
from tasks.on_mlflow.card import Card, Score, markdown, summary
from tasks.on_mlflow.registry import DATASET, DIGEST, PARENT, TEACHER, ModelVersion
from tasks.settings import Settings
from vitcore.data.dataset.manifest import Dataset, DatasetRef
from vitcore.data.reading.reader import Reader
from vitcore.evals.report import Report
from vitcore.evals.retrieval import AT, RetrievalReport
from vitcore.identity import digest
from vitcore.models.described import described
from vitcore.models.pretrained import Pretrained, load_pretrained
from vitcore.recipe import ClipConfig, Recipe

RECIPE = "vit.recipe"
"""Tag with the name of the recipe."""
RECIPE_DIGEST = "vit.recipe_digest"
"""Tag with the digest of the recipe as it was run."""
DATA_URL = "vit.dataset_url"
"""Tag with the URL of the dataset."""
DATA_LICENSE = "vit.dataset_license"
"""Tag with the terms of its photographs, where the dataset says them."""
GIT = "vit.git"
"""Tag with the commit of the code."""
CARD_FILE = "model_card.md"
_SMALL_SPLIT = 2000
_SCORES = {
    "top1": "top-1 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "ece": "expected calibration error",
    **{f"image_to_text_recall_at_{k}": f"photograph finds a caption, R@{k}" for k in AT},
    **{f"text_to_image_recall_at_{k}": f"caption finds its photograph, R@{k}" for k in AT},
}
_ASKED = {
    "classifier": "",
    "zero-shot": ", zero-shot",
    "knn": ", by the 20 nearest training photographs",
    "linear": ", by a linear classifier of the features",
    "retrieval": ", retrieval",
}


def provenance(
    recipe: Recipe, data: DatasetRef, init: ModelRef | None, teacher: ModelRef | None, code: str | None = None
) -> dict[str, str]:
    """Tags that say what something was made from; the same on a run and on a version.

    `code` is the commit of the code, where this is a copy of it that does not know.
    """
    tags = {
        RECIPE: recipe.name,
        RECIPE_DIGEST: digest(recipe.identity_parts()),
        DATASET: data.digest,
        DATA_URL: data.url,
        GIT: code or code_version(),
    }
    if init is not None:
        tags[PARENT] = init.ref
    if teacher is not None:
        tags[TEACHER] = teacher.ref
    return tags


def register_model(
    settings: Settings,
    folder: Path,
    *,
    name: str,
    identity: str,
    run_id: str,
    recipe: Recipe,
    data: Dataset,
    init: ModelRef | None,
    teacher: ModelRef | None,
    fresh: bool,
    code: str | None = None,
) -> ModelVersion:
    """Log the model of a finished training and register it; the same identity gives the same version."""
    model = load_pretrained(folder)
    with Reader(data, recipe.eval.split if recipe.validates else recipe.data.train_split) as reader:
        example = reader.read(0)
    model_uri = logged.log_model(settings.tracking_uri, run_id, folder, example)
    tags = {**provenance(recipe, data.ref, init, teacher, code), DIGEST: model.digest}
    if data.manifest.license:
        tags[DATA_LICENSE] = data.manifest.license
    card = _card(name, model, tags, scores=(), split="not evaluated yet", remarks=())
    version = registry.register(
        settings.tracking_uri,
        name=name,
        identity=identity,
        run_id=run_id,
        model_uri=model_uri,
        tags=tags,
        description=summary(card),
        fresh=fresh,
    )
    runs.log_text(settings.tracking_uri, run_id, CARD_FILE, markdown(card, version.uri))
    return version


def place_of(report: Report | RetrievalReport) -> str:
    """Where its numbers stand among metrics and tags: ``test``, or ``test/knn`` where not the head was asked."""
    return report.split if report.protocol == "classifier" else f"{report.split}/{report.protocol}"


def describe(settings: Settings, version: ModelVersion, model: Pretrained, report: Report | RetrievalReport) -> None:
    """Bring the version's description and card up to date with an evaluation of a held-out split."""
    scores = tuple(
        Score(_SCORES.get(metric, metric), estimate.value, estimate.low, estimate.high)
        for metric, estimate in report.metrics.items()
    )
    remarks = list(report.remarks)
    if report.samples < _SMALL_SPLIT:
        remarks.append(f"{report.samples} photographs are few: differences smaller than the intervals mean nothing.")
    card = _card(
        version.name,
        model,
        version.tags,
        scores=scores,
        split=f"{report.split} ({report.samples:,} photographs{_ASKED[report.protocol]})",
        remarks=tuple(remarks),
    )
    registry.describe_version(settings.tracking_uri, version, summary(card))
    runs.log_text(settings.tracking_uri, version.run_id, CARD_FILE, markdown(card, version.uri))
    place = place_of(report)
    metrics = {f"{place}/{metric}": f"{estimate.value:.4f}" for metric, estimate in report.metrics.items()}
    registry.tag_version(settings.tracking_uri, version, metrics)


def code_version() -> str:
    """Commit of the checkout this runs from, with ``-dirty`` for uncommitted changes; else the release."""
    command = ["git", "-C", str(Path(vitcore.__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return vitcore.__version__
    return found.stdout.strip() or vitcore.__version__


def _card(
    name: str,
    model: Pretrained,
    tags: Mapping[str, str],
    *,
    scores: tuple[Score, ...],
    split: str,
    remarks: tuple[str, ...],
) -> Card:
    card, recipe = model.card, model.card.recipe
    config = card.model
    train = recipe.train if recipe else None
    terms = tags.get(DATA_LICENSE)
    head = card.num_classes > 0
    return Card(
        name=name,
        task=_task(model),
        kind=logged.kind_of(card),
        architecture=described(config),
        classes=card.classes,
        parameters=sum(parameter.numel() for parameter in model.model.parameters()),
        image_size=card.image_size,
        recipe=tags.get(RECIPE, ""),
        recipe_digest=tags.get(RECIPE_DIGEST, ""),
        training=f"{train.duration}, batch {train.batch_size}, AdamW, seed {train.seed}" if train else "",
        dataset=tags.get(DATA_URL, ""),
        dataset_digest=tags.get(DATASET, ""),
        split=split,
        scores=scores,
        parent=tags.get(PARENT),
        teacher=tags.get(TEACHER),
        remarks=remarks,
        intended_use="Photographs like those it was trained on; scores say nothing about others.",
        limits=(
            *(["It always answers with one of its classes, also for photographs of something else."] if head else []),
            *([f"Its training photographs are under {terms}: see what they allow."] if terms else []),
        ),
        git=tags.get(GIT, ""),
    )


def _task(model: Pretrained) -> str:
    """What it does, in a sentence."""
    card = model.card
    if isinstance(card.model, ClipConfig):
        return f"Embeds photographs and texts in one space of {card.model.width} dimensions."
    if not card.num_classes:
        return f"Turns photographs into features of {model.classifier.width} numbers."
    return f"Classifies photographs into {len(card.classes)} classes: {', '.join(card.classes[:10])}."
