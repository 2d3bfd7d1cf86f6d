"""Evaluate: a model version and a split become a report with figures and per-sample outcomes, in a run of its own."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from prefect import task

from tasks import register
from tasks.models import ModelRef, localize
from tasks.on_mlflow import registry, runs
from tasks.on_ray.cluster import connected
from tasks.on_ray.evaluate import predict_split
from tasks.overlap import measure_overlap
from tasks.settings import Settings
from tasks.stages import StagePlan
from tasks.story import tell, track
from vitcore.data.dataset.manifest import Dataset, DatasetRef
from vitcore.data.loading.loader import EvalLoader
from vitcore.evals.attention import attention_figure
from vitcore.evals.classify import throughput
from vitcore.evals.figures import report_figures
from vitcore.evals.outcomes import Outcomes
from vitcore.evals.report import Report, build_report
from vitcore.identity import identity
from vitcore.models.pretrained import Pretrained
from vitcore.models.references import load_reference
from vitcore.recipe import Config

STAGE_VERSION = 2
"""Raised when the same model and data would give another report."""
_REPORT, _OUTCOMES = "report.json", "outcomes.npz"
_SHOWN_EACH = 6
_TELL_METRIC = "balanced_accuracy"


class EvaluateStage(Config):
    """An evaluation with everything it depends on pinned."""

    name: str
    """MLflow experiment."""
    model: ModelRef
    data: DatasetRef
    split: str

    @property
    def identity(self) -> str:
        """Name of its report."""
        inputs = {"model": self.model.digest, "data": self.data.digest}
        return identity("evaluate", STAGE_VERSION, {"split": self.split}, inputs)


class Evaluation(NamedTuple):
    """What an evaluation gives: the report, and the outcomes that a gate compares."""

    report: Report
    outcomes: Outcomes


def plan_evaluation(stage: EvaluateStage, settings: Settings, *, fresh: bool) -> StagePlan:
    """What `evaluate_model` would do."""
    verb = f"evaluate {stage.model.ref} on {stage.split}"
    finished = runs.find_finished(settings.tracking_uri, stage.name, stage.identity)
    if finished is None:
        return StagePlan(verb, stage.identity, "run", "no finished run has this model and data")
    if fresh:
        return StagePlan(verb, stage.identity, "run", "asked for again")
    return StagePlan(verb, stage.identity, "done", f"run {finished.run_id} holds its report")


@task(name="evaluate", task_run_name="evaluate {stage.model.ref} on {stage.split}")
def evaluate_model(stage: EvaluateStage, settings: Settings, *, fresh: bool = False) -> Evaluation:
    """The evaluation of a stage: the existing one, or made now.

    Raises:
        RequestError: the model does not know the dataset's classes, or the split is missing.
    """
    finished = None if fresh else runs.find_finished(settings.tracking_uri, stage.name, stage.identity)
    if finished is not None:
        evaluation = _stored(settings, finished.run_id)
        tell(settings, f"evaluate {stage.model.ref} on {stage.split}: done before")
        return evaluation
    run_id = _open_run(stage, settings, fresh=fresh)
    try:
        evaluation = _evaluate(stage, settings, run_id)
    except BaseException as error:
        runs.fail_with(settings.tracking_uri, run_id, error)
        raise
    runs.finish(settings.tracking_uri, run_id)
    score = evaluation.report.metrics[_TELL_METRIC]
    tell(settings, f"evaluate {stage.model.ref} on {stage.split}: {_TELL_METRIC} {score}")
    for remark in evaluation.report.remarks:
        tell(settings, remark)
    return evaluation


def _open_run(stage: EvaluateStage, settings: Settings, *, fresh: bool) -> str:
    tags = {"vit.model": stage.model.ref, registry.DIGEST: stage.model.digest, registry.DATASET: stage.data.digest}
    run_id = runs.open_run(
        settings.tracking_uri,
        experiment=stage.name,
        identity=stage.identity,
        name=f"evaluate {stage.model.ref.removeprefix('models:/')} on {stage.split}",
        params={"model": stage.model.ref, "data": stage.data.url, "split": stage.split},
        tags=tags,
        fresh=fresh,
    )
    runs.log_dataset(
        settings.tracking_uri,
        run_id,
        name=stage.name,
        digest=stage.data.digest,
        url=stage.data.url,
        role="evaluation",
    )
    return run_id


def _evaluate(stage: EvaluateStage, settings: Settings, run_id: str) -> Evaluation:
    dataset = Dataset.open(stage.data)
    model = load_reference(localize(settings.tracking_uri, settings.home / "models", stage.model.ref))
    samples = dataset.split(stage.split).samples
    with connected(settings), track(settings, f"evaluate on {stage.split}", samples, "photographs") as shown:
        outcomes = predict_split(stage.model.ref, stage.data, stage.split, settings, progress=shown.update)
    report = build_report(
        outcomes,
        model=stage.model.ref,
        dataset=stage.data.digest,
        split=stage.split,
        parameters=sum(parameter.numel() for parameter in model.model.parameters()),
        images_per_s=throughput(model),
        overlap=measure_overlap(settings, stage.model.ref, model, dataset, stage.split, outcomes),
    )
    figures = report_figures(report, outcomes)
    attention = _attention(model, dataset, stage.split, outcomes)
    if attention is not None:
        figures["attention"] = attention
    uri = settings.tracking_uri
    runs.log_figures(uri, run_id, figures)
    runs.log_metrics(uri, run_id, {f"{stage.split}/{name}": value for name, value in _numbers(report).items()})
    runs.log_json(uri, run_id, _REPORT, report.model_dump(mode="json"))
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / _OUTCOMES
        outcomes.save(str(path))
        runs.log_file(uri, run_id, path)
    if stage.model.ref.startswith("models:") and stage.split == "test":
        version = registry.resolve(uri, stage.model.ref)
        if version.tags.get(register.DATA_URL) == stage.data.url:  # scores on other data are no part of its card
            register.describe(settings, version, model, report)
            known = report.overlap.fractions if report.overlap else {}
            tags = {f"{stage.split}/{name}": f"{value:.4f}" for name, value in known.items()}
            registry.tag_version(uri, version, tags)
    return Evaluation(report, outcomes)


def _numbers(report: Report) -> dict[str, float]:
    """Everything that becomes a metric of the run."""
    numbers = {name: found.value for name, found in report.metrics.items()}
    if report.overlap is not None:
        numbers |= report.overlap.fractions
        numbers |= {f"clean_{name}": found.value for name, found in report.overlap.clean.items()}
    return numbers


def _attention(model: Pretrained, dataset: Dataset, split: str, outcomes: Outcomes) -> Figure | None:
    """Attention over photographs the model was surest of: half of them right, half wrong."""
    chosen = _surest(outcomes, right=True) + _surest(outcomes, right=False)
    keys = {str(key): row for row, key in enumerate(dataset.index(split).keys)}
    rows = [keys[str(outcomes.keys[place])] for place in chosen if str(outcomes.keys[place]) in keys]
    images = []
    for row in rows:
        with EvalLoader(
            dataset,
            split,
            image_size=model.card.image_size,
            resize=model.card.resize,
            batch_size=1,
            start=row,
            stop=row + 1,
            threads=0,
        ) as loader:
            images.append(next(iter(loader)).images_SCHW)
    if not images:
        return None
    return attention_figure(
        model.model,
        torch.cat(images),
        labels=[int(outcomes.labels[place]) for place in chosen],
        predictions=[int(outcomes.predictions[place]) for place in chosen],
        classes=outcomes.classes,
    )


def _surest(outcomes: Outcomes, *, right: bool) -> list[int]:
    logits = outcomes.logits
    probability = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = probability.max(axis=1) / probability.sum(axis=1)
    wanted = np.flatnonzero((outcomes.predictions == outcomes.labels) == right)
    return [int(place) for place in wanted[np.argsort(-confidence[wanted], kind="stable")][:_SHOWN_EACH]]


def _stored(settings: Settings, run_id: str) -> Evaluation:
    """Read a finished evaluation back from its run."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        report = Report.model_validate_json(
            runs.fetch_file(settings.tracking_uri, run_id, _REPORT, folder).read_text(encoding="utf-8")
        )
        outcomes = Outcomes.load(str(runs.fetch_file(settings.tracking_uri, run_id, _OUTCOMES, folder)))
    return Evaluation(report, outcomes)
