"""A model measured on held-out photographs."""

from __future__ import annotations

from prefect import flow

from tasks.evaluate import EvaluateStage, evaluate_model, plan_evaluation
from tasks.models import resolve
from tasks.settings import Settings, load
from tasks.stages import StagePlan
from vitcore.data.dataset.manifest import Dataset
from vitcore.evals.report import Report


@flow(name="evaluate", flow_run_name="evaluate {model}")
def evaluate(model: str, data: list[str], split: str = "test", fresh: bool = False) -> list[Report]:
    """One report for each dataset, in their order."""
    settings = load()
    stages = requested(model, data, split, settings)
    return [evaluate_model(stage, settings, fresh=fresh).report for stage in stages]


def plan(model: str, data: list[str], split: str = "test", fresh: bool = False) -> list[StagePlan]:
    """What `evaluate` would do."""
    settings = load()
    return [plan_evaluation(stage, settings, fresh=fresh) for stage in requested(model, data, split, settings)]


def requested(model: str, data: list[str], split: str, settings: Settings) -> list[EvaluateStage]:
    """The evaluations a request names, with model and dataset versions pinned.

    Raises:
        RequestError: no such model, dataset or split, or a dataset without labels.
    """
    pinned = resolve(model, settings)
    stages = []
    for url in data:
        dataset = Dataset.open(url)
        dataset.require("label")
        dataset.split(split)
        name = pinned.ref.split("/")[1] if pinned.ref.startswith("models:/") else dataset.url.rsplit("/", 1)[-1]
        stages.append(EvaluateStage(name=name, model=pinned, data=dataset.ref, split=split))
    return stages
