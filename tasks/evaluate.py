"""Evaluate: a model version and a split become a report with figures and per-sample outcomes, in a run of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from matplotlib.figure import Figure
from prefect import task

from tasks import register
from tasks.models import ModelRef, localize
from tasks.on_mlflow import registry, runs
from tasks.overlap import measure_overlap
from tasks.protocols import outcomes_of
from tasks.settings import Settings
from tasks.stages import StagePlan
from tasks.story import tell
from vitcore.data.dataset.manifest import Dataset, DatasetRef
from vitcore.errors import RequestError
from vitcore.evals.classify import throughput
from vitcore.evals.figures import report_figures
from vitcore.evals.inside import outcome_figures, zero_shot_figure
from vitcore.evals.outcomes import Outcomes
from vitcore.evals.protocol import GALLERY, Protocol, choose, usual_protocols
from vitcore.evals.report import Report, build_report
from vitcore.evals.represent import scale_of
from vitcore.evals.retrieval import RetrievalReport
from vitcore.evals.zeroshot import TEMPLATES
from vitcore.identity import identity
from vitcore.models.pretrained import Pretrained
from vitcore.models.references import load_reference
from vitcore.recipe import Config

STAGE_VERSION = 2
"""Raised when the same model and data would give another report."""
REPORT = "report.json"
"""A run's file with its report."""
_OUTCOMES = "outcomes.npz"
_TELL_METRIC = "balanced_accuracy"


class EvaluateStage(Config):
    """An evaluation with everything it depends on pinned."""

    name: str
    """MLflow experiment."""
    model: ModelRef
    data: DatasetRef
    split: str
    protocol: Protocol = Protocol()
    """How the model is asked."""

    @property
    def identity(self) -> str:
        """Name of its report."""
        inputs = {"model": self.model.digest, "data": self.data.digest}
        return identity("evaluate", STAGE_VERSION, {"split": self.split, **self.protocol.identity_parts()}, inputs)

    @property
    def verb(self) -> str:
        """What it does, in words."""
        by = "" if self.protocol.name == "classifier" else f" by {self.protocol.name}"
        return f"evaluate {self.model.ref} on {self.split}{by}"


class Evaluation(NamedTuple):
    """What an evaluation gives: the report, and the outcomes that a gate compares."""

    report: Report
    outcomes: Outcomes


def stage_of(
    settings: Settings,
    name: str,
    model: ModelRef,
    data: DatasetRef,
    split: str,
    *,
    asked: str = "auto",
    templates: tuple[str, ...] = TEMPLATES,
    bank: str = "train",
    gallery: int | None = None,
) -> EvaluateStage:
    """An evaluation by the protocol that was asked for, or that fits the model and the data.

    Args:
        settings: where models come from and are kept.
        name: MLflow experiment.
        model: pinned.
        data: dataset version.
        split: its name.
        asked: a protocol, or ``auto``.
        templates: of zero-shot classification.
        bank: split whose labels k-NN and the linear probe know.
        gallery: photographs that a retrieval searches; default: all, at most 5,000.

    Raises:
        RequestError: no such split, or a protocol that fits neither model nor data.
    """
    dataset = Dataset.open(data)
    samples = dataset.split(split).samples
    found = choose(asked, _load(settings, model).card, dataset)
    protocol = Protocol(name=found)
    if found == "zero-shot":
        protocol = Protocol(name=found, prompts=templates)
    elif found == "retrieval":
        protocol = Protocol(name=found, gallery=min(GALLERY if gallery is None else gallery, samples))
    elif found in ("knn", "linear"):
        dataset.split(bank)
        if bank == split:
            raise RequestError(f"photographs cannot be told by themselves: take another split than {split} as --bank")
        protocol = Protocol(name=found, bank=bank)
    return EvaluateStage(name=name, model=model, data=data, split=split, protocol=protocol)


def plan_evaluation(stage: EvaluateStage, settings: Settings, *, fresh: bool) -> StagePlan:
    """What `evaluate_model` would do."""
    finished = runs.find_finished(settings.tracking_uri, stage.name, stage.identity)
    if finished is None:
        return StagePlan(stage.verb, stage.identity, "run", "no finished run has this model and data")
    if fresh:
        return StagePlan(stage.verb, stage.identity, "run", "asked for again")
    return StagePlan(stage.verb, stage.identity, "done", f"run {finished.run_id} holds its report")


@task(name="evaluate", task_run_name="{stage.verb}")
def evaluate_model(stage: EvaluateStage, settings: Settings, *, fresh: bool = False) -> Evaluation:
    """The evaluation of a stage on labels: the existing one, or made now.

    Raises:
        RequestError: the model does not know the dataset's classes, or the split is missing.
    """
    finished = None if fresh else runs.find_finished(settings.tracking_uri, stage.name, stage.identity)
    if finished is not None:
        evaluation = _stored(settings, finished.run_id)
        tell(settings, f"{stage.verb}: done before")
        return evaluation
    with recorded(stage, settings, fresh=fresh) as run_id:
        evaluation = _evaluate(stage, settings, run_id)
    score = evaluation.report.metrics[_TELL_METRIC]
    tell(settings, f"{stage.verb}: {_TELL_METRIC} {score}")
    for remark in evaluation.report.remarks:
        tell(settings, remark)
    return evaluation


@contextmanager
def recorded(stage: EvaluateStage, settings: Settings, *, fresh: bool) -> Iterator[str]:
    """The run of an evaluation while it is made: finished afterwards, or failed with its reason."""
    uri = settings.tracking_uri
    ref = stage.model.ref
    params = {"model": ref, "data": stage.data.url, "split": stage.split}
    if stage.protocol.name != "classifier":
        params["protocol"] = stage.protocol.name
    run_id = runs.open_run(
        uri,
        experiment=stage.name,
        identity=stage.identity,
        name=stage.verb.replace("models:/", "", 1),
        params=params,
        tags={"vit.model": ref, registry.DIGEST: stage.model.digest, registry.DATASET: stage.data.digest},
        fresh=fresh,
    )
    runs.log_dataset(uri, run_id, name=stage.name, digest=stage.data.digest, url=stage.data.url, role="evaluation")
    try:
        yield run_id
    except BaseException as error:
        runs.fail_with(uri, run_id, error)
        raise
    runs.finish(uri, run_id)


def publish(
    stage: EvaluateStage,
    settings: Settings,
    run_id: str,
    model: Pretrained,
    report: Report | RetrievalReport,
    figures: Mapping[str, Figure],
) -> None:
    """Log a report and its figures to its run; scores of a test split on a version's own data go to its card."""
    uri = settings.tracking_uri
    runs.log_figures(uri, run_id, figures)
    place = register.place_of(report)
    runs.log_metrics(uri, run_id, {f"{place}/{name}": value for name, value in _numbers(report).items()})
    runs.log_json(uri, run_id, REPORT, report.model_dump(mode="json"))
    if not stage.model.ref.startswith("models:") or stage.split != "test":
        return
    version = registry.resolve(uri, stage.model.ref)
    if version.tags.get(register.DATA_URL) != stage.data.url:  # scores on other data are no part of its card
        return
    if stage.protocol.name in usual_protocols(model.card):
        register.describe(settings, version, model, report)
    overlap = report.overlap if isinstance(report, Report) else None
    known = overlap.fractions if overlap else {}
    registry.tag_version(uri, version, {f"{stage.split}/{name}": f"{value:.4f}" for name, value in known.items()})


def load_stage(stage: EvaluateStage, settings: Settings) -> tuple[Pretrained, Dataset]:
    """Its model, on the CPU, and its dataset."""
    return _load(settings, stage.model), Dataset.open(stage.data)


def _evaluate(stage: EvaluateStage, settings: Settings, run_id: str) -> Evaluation:
    model, dataset = load_stage(stage, settings)
    outcomes = outcomes_of(settings, stage.model.ref, model, dataset, stage.split, stage.protocol)
    report = build_report(
        outcomes,
        model=stage.model.ref,
        dataset=stage.data.digest,
        split=stage.split,
        protocol=stage.protocol.name,
        parameters=sum(parameter.numel() for parameter in model.model.parameters()),
        images_per_s=throughput(model),
        overlap=measure_overlap(settings, stage.model.ref, model, dataset, stage.split, outcomes),
    )
    figures = report_figures(report, outcomes)
    figures |= outcome_figures(model.model, model.card, dataset, stage.split, outcomes)
    if stage.protocol.name == "zero-shot":
        grid = zero_shot_figure(model.card, dataset, stage.split, outcomes, scale=scale_of(model))
        figures |= {} if grid is None else {"similarity": grid}
    publish(stage, settings, run_id, model, report, figures)
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / _OUTCOMES
        outcomes.save(str(path))
        runs.log_file(settings.tracking_uri, run_id, path)
    return Evaluation(report, outcomes)


def _numbers(report: Report | RetrievalReport) -> dict[str, float]:
    """Everything that becomes a metric of the run."""
    numbers = {name: found.value for name, found in report.metrics.items()}
    if isinstance(report, Report) and report.overlap is not None:
        numbers |= report.overlap.fractions
        numbers |= {f"clean_{name}": found.value for name, found in report.overlap.clean.items()}
    return numbers


def _load(settings: Settings, model: ModelRef) -> Pretrained:
    return load_reference(localize(settings.tracking_uri, settings.home / "models", model.ref))


def _stored(settings: Settings, run_id: str) -> Evaluation:
    """Read a finished evaluation back from its run."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        report = Report.model_validate_json(
            runs.fetch_file(settings.tracking_uri, run_id, REPORT, folder).read_text(encoding="utf-8")
        )
        outcomes = Outcomes.load(str(runs.fetch_file(settings.tracking_uri, run_id, _OUTCOMES, folder)))
    return Evaluation(report, outcomes)
