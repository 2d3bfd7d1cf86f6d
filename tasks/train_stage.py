"""A training with everything it depends on pinned, and how it becomes a registered version.

What is here runs in the process of a flow or in a job on a cluster, the same in both, so it knows no Prefect.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tasks import register
from tasks.models import ModelRef, localize
from tasks.on_mlflow import runs
from tasks.on_mlflow.registry import ModelVersion, find
from tasks.on_mlflow.sink import MlflowSink
from tasks.on_ray.cluster import connected
from tasks.on_ray.mailbox import Message
from tasks.on_ray.train import fit, overfit
from tasks.settings import Settings
from vitcore import storage
from vitcore.data.dataset.manifest import Dataset, DatasetRef
from vitcore.errors import WorkError
from vitcore.evals.figures import training_curves
from vitcore.identity import identity
from vitcore.recipe import Compute, Config, DistillConfig, Recipe, flatten
from vitcore.train.request import TrainRequest, TrainResult
from vitcore.train.store_teacher import TeachRequest, wanted

STAGE_VERSION = 2
"""Raised when the same recipe and inputs would give other weights."""


class TrainStage(Config):
    """A training with everything it depends on pinned."""

    name: str
    """Registered model its product becomes a version of; also the MLflow experiment."""
    recipe: Recipe
    compute: Compute
    data: DatasetRef
    mixture: tuple[DatasetRef, ...] = ()
    """Datasets mixed in."""
    init: ModelRef | None = None
    """Model it starts from."""
    teacher: ModelRef | None = None
    """Model it is distilled from."""
    teacher_top: int | None = None
    """How many logits of a view the teacher stores beforehand, at most; default: it answers at every step."""

    @property
    def identity(self) -> str:
        """Name of its product: recipe and inputs, not where and how it runs.

        Stored outputs keep the teacher's decisions exactly, and its distribution cut to the largest logits: the product
        is another one where the distribution is learned.
        """
        inputs = {
            "data": self.data.digest,
            "mixture": " ".join(ref.digest for ref in self.mixture) or None,
            "init": self.init.digest if self.init else None,
            "teacher": self.teacher.digest if self.teacher else None,
        }
        objective = self.recipe.objective
        if self.teacher_top is not None and isinstance(objective, DistillConfig) and objective.mode == "soft":
            inputs["teacher_top"] = str(self.teacher_top)
        return identity("train", STAGE_VERSION, self.recipe.identity_parts(), inputs)

    @property
    def teaching(self) -> TeachRequest | None:
        """What its teacher is asked beforehand; None where it answers at every step, or there is none."""
        if self.teacher is None or self.teacher_top is None:
            return None
        return TeachRequest(
            recipe=self.recipe,
            compute=self.compute,
            data=self.data,
            mixture=self.mixture,
            teacher=self.teacher.ref,
            digest=self.teacher.digest,
            top=self.teacher_top,
        )

    def request(self, checkpoints: str) -> TrainRequest:
        """What the workers are asked."""
        return TrainRequest(
            recipe=self.recipe,
            compute=self.compute,
            data=self.data,
            mixture=self.mixture,
            init=self.init.ref if self.init else None,
            teacher=self.teacher.ref if self.teacher else None,
            teacher_outputs=wanted(self.teaching).place if self.teaching else None,
            checkpoints=checkpoints,
            identity=self.identity,
        )


def trained(stage: TrainStage, settings: Settings) -> ModelVersion | None:
    """The stage's product, if a finished run committed it."""
    finished = runs.find_finished(settings.tracking_uri, stage.name, stage.identity)
    return find(settings.tracking_uri, stage.name, stage.identity, finished.run_id) if finished else None


def open_run(stage: TrainStage, settings: Settings, *, fresh: bool) -> str:
    """The MLflow run of a stage: the unfinished one continued, else, or where `fresh`, a new one."""
    run_id = runs.open_run(
        settings.tracking_uri,
        experiment=stage.name,
        identity=stage.identity,
        name=stage.recipe.name,
        params={
            **flatten(stage.recipe),
            **{f"compute.{name}": value for name, value in flatten(stage.compute).items()},
        },
        tags=register.provenance(stage.recipe, stage.data, stage.init, stage.teacher),
        fresh=fresh,
    )
    for ref in (stage.data, *stage.mixture):
        name = stage.name if ref is stage.data else ref.url.rstrip("/").rsplit("/", 1)[-1]
        runs.log_dataset(settings.tracking_uri, run_id, name=name, digest=ref.digest, url=ref.url, role="training")
    return run_id


def produce(
    stage: TrainStage,
    settings: Settings,
    run_id: str,
    listener: Callable[[Message], None],
    *,
    fresh: bool = False,
    code: str | None = None,
) -> dict[str, float]:
    """Train in the open run `run_id`, continued from its newest checkpoint, and commit the model version.

    Args:
        stage: what to train.
        settings: endpoints and folders; their cluster is connected to, unless this process is connected already.
        run_id: MLflow run that `open_run` gave; it is closed whatever happens.
        listener: see `tasks.on_ray.train.fit`.
        fresh: register another version even if the identity has one.
        code: commit of the code, where this is a copy that does not know it.
    Returns:
        The validation metrics of the model that was kept.
    """
    checkpoints = checkpoints_of(stage, settings, run_id)
    try:
        result = _fit(stage, settings, run_id, checkpoints, listener)
        _commit(stage, settings, run_id, result, fresh=fresh, code=code)
    except BaseException as error:
        runs.fail_with(settings.tracking_uri, run_id, error)
        raise
    runs.finish(settings.tracking_uri, run_id)
    storage.remove(checkpoints)  # the model is in the registry; nothing will continue this run
    return result.metrics


def memorise(stage: TrainStage, settings: Settings, listener: Callable[[Message], None]) -> dict[str, float]:
    """Learn one batch by heart and register nothing; see `vitcore.train.overfit`."""
    live = stage.model_copy(update={"teacher_top": None})  # what is stored is of other views than those memorised
    request = live.request(str(settings.home / "overfit"))
    to_folder = partial(localize, settings.tracking_uri, settings.home / "models")
    with connected(settings):
        return overfit(request, settings, localize=to_folder, listener=listener)


def checkpoints_of(stage: TrainStage, settings: Settings, run_id: str) -> str:
    """URL of the folder with the checkpoints of a run."""
    return storage.join(settings.checkpoints, stage.identity, run_id)


def _fit(
    stage: TrainStage, settings: Settings, run_id: str, checkpoints: str, listener: Callable[[Message], None]
) -> TrainResult:
    request = stage.request(checkpoints)
    make_sink = partial(MlflowSink, settings.tracking_uri, run_id, spool=settings.home / "spool")
    to_folder = partial(localize, settings.tracking_uri, settings.home / "models")
    with connected(settings):
        return fit(request, settings, make_sink=make_sink, localize=to_folder, listener=listener)


def _commit(
    stage: TrainStage, settings: Settings, run_id: str, result: TrainResult, *, fresh: bool, code: str | None
) -> None:
    """Log figures and model, register the version. Each part is idempotent: a kill in between repeats it."""
    if result.best_step == 0:
        raise WorkError(f"training {stage.recipe.name} ended without a model")
    validation = f"val/{stage.recipe.eval.metric}" if stage.recipe.validates else None
    names = ("train/loss",) if validation is None else ("train/loss", validation)
    rows = runs.history(settings.tracking_uri, run_id, names)
    curves = training_curves({stage.recipe.name: rows}, validation=validation)
    runs.log_figures(settings.tracking_uri, run_id, {"training_curves": curves})
    runs.log_metrics(
        settings.tracking_uri,
        run_id,
        {f"best/{name}": value for name, value in result.metrics.items()},
        step=result.best_step,
    )
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in ("model.safetensors", "config.json"):
            (folder / name).write_bytes(storage.read(storage.join(result.model, name)))
        register.register_model(
            settings,
            folder,
            name=stage.name,
            identity=stage.identity,
            run_id=run_id,
            recipe=stage.recipe,
            data=Dataset.open(stage.data),
            init=stage.init,
            teacher=stage.teacher,
            fresh=fresh,
            code=code,
        )
