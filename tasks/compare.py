"""Compare: models on the same test photographs, side by side, with what a difference is worth."""

from __future__ import annotations

from prefect import task

from tasks.evaluate import Evaluation
from tasks.on_mlflow import runs
from tasks.settings import Settings
from vitcore.data.dataset.manifest import DatasetRef
from vitcore.evals.figures import ModelScore, comparison
from vitcore.evals.metrics import MetricName
from vitcore.evals.outcomes import pair
from vitcore.evals.report import Report
from vitcore.evals.statistics import Estimate, paired_difference
from vitcore.identity import identity
from vitcore.recipe import Config

_METRIC: MetricName = "balanced_accuracy"


class Line(Config):
    """One model of the summary."""

    label: str
    report: Report


class Summary(Config):
    """What a pipeline ends with."""

    name: str
    """Registered model."""
    lines: tuple[Line, ...]
    gain: Estimate
    """Balanced accuracy that distillation bought on the test split: student minus the same ViT without a teacher."""
    champion: str | None
    """Reference of the reigning version."""
    promoted: bool
    """Whether the gate let the candidate pass."""
    reasons: tuple[str, ...]
    """What the gate said."""


@task(name="compare")
def compare_models(
    name: str, data: DatasetRef, evaluations: dict[str, Evaluation], settings: Settings, *, student: str, plain: str
) -> Estimate:
    """Log the comparison as a run of its own; returns what `student` gained over `plain`, paired by photograph."""
    own, other = pair(evaluations[student].outcomes, evaluations[plain].outcomes)
    gain = paired_difference(_METRIC, own.labels, own.logits, other.logits)
    digests = {label: evaluation.report.model for label, evaluation in evaluations.items()}
    stage = identity("compare", 1, {"models": digests}, {"data": data.digest})
    if runs.find_finished(settings.tracking_uri, name, stage) is None:
        run_id = runs.open_run(
            settings.tracking_uri, experiment=name, identity=stage, name="compare", params=digests, tags={}
        )
        scores = [
            ModelScore(label, found.report.metrics[_METRIC], found.report.parameters, found.report.images_per_s)
            for label, found in evaluations.items()
        ]
        classes = len(own.classes)
        note = f"{len(own)} test photographs; {student} − {plain}: {gain}"
        figure = comparison(scores, metric="Balanced accuracy", chance=1 / classes, note=note)
        runs.log_figures(settings.tracking_uri, run_id, {"comparison": figure})
        runs.log_metrics(
            settings.tracking_uri,
            run_id,
            {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high},
        )
        runs.finish(settings.tracking_uri, run_id)
    return gain
