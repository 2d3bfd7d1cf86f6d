"""The whole way on a small corpus: Ray workers, a Prefect server, an MLflow store, nothing pretended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from flows.distill import distill
from flows.evaluate import evaluate
from flows.finetune import finetune
from flows.ingest import ingest
from flows.pretrain import pretrain
from flows.promote import promote, rollback
from flows.request import plan
from tasks.on_mlflow.champion import champion
from tasks.on_mlflow.registry import ModelVersion
from tasks.settings import Settings
from vitcore.data.dataset.manifest import DatasetRef
from vitcore.data.ingest_config import IngestConfig, SplitFractions
from vitcore.errors import RequestError, WorkError
from vitcore.evals.report import Report
from vitcore.recipe import Compute

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

TINY: dict[str, Any] = {
    "data.image_size": 32,
    "model.patch": 8,
    "model.width": 32,
    "model.depth": 2,
    "model.heads": 2,
    "train.batch_size": 16,
    "train.duration": "30 steps",
    "eval.every": "10 steps",
    "eval.resize": 32,
    "optim.lr": 3e-3,
}
TUNE: dict[str, Any] = {
    "data.image_size": 48,
    "train.batch_size": 16,
    "train.duration": "6 steps",
    "eval.resize": 48,
    "eval.every": "6 steps",
}
TWO = Compute(workers=2, loader_workers=1)


@dataclass(frozen=True)
class Story:
    """Everything one run of the way gave."""

    data: DatasetRef
    teacher: ModelVersion
    student: ModelVersion
    tuned: ModelVersion
    reports: list[Report]
    champion: str | None


@pytest.fixture(scope="module")
def story(house: Settings, photographs: Path) -> Story:
    """ingest → pretrain a teacher → distil → fine-tune at a higher resolution → evaluate → promote."""
    url = str(house.home / "data" / "colours")
    data = ingest(str(photographs), url, IngestConfig(splits=SplitFractions(train=0.6, val=0.2, test=0.2)))
    teacher = pretrain("vit_tiny_cpu", url, TINY, TWO)
    student = distill("deit_tiny_cpu", url, teacher.uri, TINY, TWO)
    tuned = finetune("finetune_224", url, student.uri, TUNE, TWO)
    reports = evaluate(tuned.uri, [url])
    verdict = promote(tuned.uri)
    return Story(data, teacher, student, tuned, reports, verdict.champion)


def test_every_training_is_a_version_with_its_ancestry(story: Story) -> None:
    assert [story.teacher.version, story.student.version, story.tuned.version] == [1, 2, 3]
    assert story.student.tags["vit.teacher"] == story.teacher.uri
    assert story.tuned.tags["vit.parent"] == story.student.uri
    for version in (story.teacher, story.student, story.tuned):
        assert version.name == "colours"
        assert version.tags["vit.dataset"] == story.data.digest
        assert len(version.tags["vit.digest"]) == 64


def test_the_models_have_learned(story: Story) -> None:
    (report,) = story.reports
    assert report.metrics["balanced_accuracy"].low > 1 / 3
    assert report.samples == sum(row.accuracy.n for row in report.per_class)


def test_the_champion_moved_through_the_gate(house: Settings, story: Story) -> None:
    assert story.champion == story.tuned.uri
    reigning = champion(house.tracking_uri, "colours")
    assert reigning is not None
    assert reigning.tags["vit.gate"].startswith("passed")
    assert "test (" in reigning.description


def test_each_step_stands_once_in_one_finished_run(house: Settings, story: Story) -> None:
    client = MlflowClient(house.tracking_uri)
    run = client.get_run(story.teacher.run_id)
    steps = [point.step for point in client.get_metric_history(story.teacher.run_id, "train/loss")]
    assert steps == list(range(1, 31))
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(story.teacher.run_id, "val/top1")] == [10, 20, 30]
    names = {artifact.path for artifact in client.list_artifacts(story.teacher.run_id, "figures")}
    assert "figures/training_curves.png" in names
    assert not (house.home / "checkpoints" / story.teacher.identity / story.teacher.run_id).exists()


def test_the_evaluation_keeps_figures_and_outcomes(house: Settings, story: Story) -> None:
    client = MlflowClient(house.tracking_uri)
    experiment = client.get_experiment_by_name("colours")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "params.split = 'test'")
    names = {artifact.path for artifact in client.list_artifacts(runs[0].info.run_id, "figures")}
    assert {"figures/confusion_matrix.png", "figures/attention.png"} <= names
    assert {"report.json", "outcomes.npz"} <= {artifact.path for artifact in client.list_artifacts(runs[0].info.run_id)}


def test_the_logged_model_serves_a_photograph(house: Settings, story: Story, photographs: Path) -> None:
    mlflow.set_tracking_uri(house.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/colours@champion")
    answer = model.predict(pd.DataFrame({"image": [(photographs / "red" / "000.jpg").read_bytes()]}))
    assert answer["class"].tolist() == ["red"]


def test_what_is_done_is_done(house: Settings, story: Story, photographs: Path) -> None:
    again = ingest(str(photographs), story.data.url, IngestConfig(splits=SplitFractions(train=0.6, val=0.2, test=0.2)))
    assert again == story.data
    one_worker = Compute(workers=1)
    assert pretrain("vit_tiny_cpu", story.data.url, TINY, one_worker).uri == story.teacher.uri
    assert evaluate(story.tuned.uri, [story.data.url]) == story.reports


def test_only_what_changed_runs_again(story: Story) -> None:
    request: dict[str, Any] = {"data": story.data.url, "compute": Compute(workers=7)}
    (same,) = plan("deit_tiny_cpu", overrides=TINY, teacher=story.teacher.uri, **request)
    (tune,) = plan("finetune_224", overrides=TUNE, model=story.student.uri, **request)
    more = {**TUNE, "train.duration": "7 steps"}
    (longer,) = plan("finetune_224", overrides=more, model=story.student.uri, **request)
    assert (same.state, tune.state, longer.state) == ("done", "done", "run")


def test_a_teacher_is_asked_once_for_all_students_of_a_stream(story: Story) -> None:
    request: dict[str, Any] = {"data": story.data.url, "teacher": story.teacher.uri, "teacher_top": 2, "compute": TWO}
    (same,) = plan("deit_tiny_cpu", overrides=TINY, **request)
    assert same.state == "done"  # a decision is learned, and it is stored exactly
    soft = {**TINY, "objective.mode": "soft", "train.duration": "10 steps"}
    assert [line.state for line in plan("deit_tiny_cpu", overrides=soft, **request)] == ["run", "run"]
    first = distill("deit_tiny_cpu", overrides=soft, **request)
    assert isinstance(first, ModelVersion)
    assert first.tags["vit.teacher"] == story.teacher.uri
    (done,) = plan("deit_tiny_cpu", overrides=soft, **request)
    assert done.state == "done"
    (live,) = plan("deit_tiny_cpu", overrides=soft, **{**request, "teacher_top": None})
    assert live.identity != done.identity
    smaller = {**soft, "model.depth": 1, "train.duration": "8 steps"}
    stored, trained = plan("deit_tiny_cpu", overrides=smaller, **request)
    assert (stored.state, trained.state) == ("done", "run")
    assert distill("deit_tiny_cpu", overrides=smaller, **request).tags["vit.teacher"] == story.teacher.uri
    (further, _) = plan("deit_tiny_cpu", overrides={**soft, "train.duration": "30 steps"}, **request)
    assert further.reason.startswith("1 of 1 files of its outputs are missing")
    memorised = distill("deit_tiny_cpu", overrides=soft, **request, overfit_one_batch=True)
    assert isinstance(memorised, dict)
    assert memorised["top1"] >= 0.99


def test_fresh_makes_another_version(house: Settings, story: Story) -> None:
    again = finetune("finetune_224", story.data.url, story.student.uri, TUNE, TWO, fresh=True)
    assert again.version > story.tuned.version
    assert again.tags["vit.digest"] == story.tuned.tags["vit.digest"]  # the same request learns the same weights


def test_rollback_needs_a_champion_before(story: Story) -> None:
    with pytest.raises(RequestError, match="no earlier champion"):
        rollback("colours")


def test_one_batch_is_memorised(story: Story) -> None:
    answer = pretrain("vit_tiny_cpu", story.data.url, TINY, TWO, overfit_one_batch=True)
    assert isinstance(answer, dict)
    assert answer["top1"] >= 0.99


def test_a_training_that_cannot_learn_says_so(story: Story) -> None:
    with pytest.raises(WorkError, match="not finite"):
        pretrain("vit_tiny_cpu", story.data.url, {**TINY, "optim.lr": 1e12, "optim.clip_norm": None}, TWO)
