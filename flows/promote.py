"""The gate: a version becomes the champion of its name, or does not, and the reason is on record."""

from __future__ import annotations

from typing import Literal

from prefect import flow

from tasks.on_mlflow import registry
from tasks.on_mlflow.registry import ModelVersion
from tasks.promote import Verdict, promote_model, roll_back
from tasks.register import DATA_URL
from tasks.settings import Settings, load
from vitcore.data.dataset.manifest import Dataset, DatasetRef
from vitcore.errors import RequestError


@flow(name="promote", flow_run_name="promote {model}")
def promote(
    model: str,
    data: str | None = None,
    split: str = "val",
    metric: Literal["top1", "balanced_accuracy", "auroc"] = "balanced_accuracy",
    margin: float = 0.01,
) -> Verdict:
    """Move the alias `champion` to `model` if it passes the gate on the validation split of `data`.

    Without `data`, the dataset the model was trained on, at its current version.
    """
    settings = load()
    candidate, dataset = requested(model, data, split, settings)
    return promote_model(candidate, dataset, settings, split=split, metric=metric, margin=margin)


def requested(model: str, data: str | None, split: str, settings: Settings) -> tuple[ModelVersion, DatasetRef]:
    """The candidate and the dataset version that decide, pinned.

    Raises:
        RequestError: no such version, dataset or split, or a dataset without labels.
    """
    candidate = registry.resolve(settings.tracking_uri, model)
    url = data or candidate.tags.get(DATA_URL)
    if url is None:
        raise RequestError(f"{candidate.uri} does not say what it was trained on; name the dataset with --data")
    dataset = Dataset.open(url)
    dataset.require("label")
    dataset.split(split)
    return candidate, dataset.ref


@flow(name="roll back", flow_run_name="roll back {name}")
def rollback(name: str) -> ModelVersion:
    """Give the alias `champion` of a registered model back to the version that had it before."""
    return roll_back(name, load())
