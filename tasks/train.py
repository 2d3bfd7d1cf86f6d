"""Train: a recipe and its inputs become a registered model version, once for each identity."""

from __future__ import annotations

from functools import partial

from prefect import task

from tasks.jobs import carry_out
from tasks.on_mlflow import runs
from tasks.on_mlflow.registry import ModelVersion
from tasks.on_ray.mailbox import Message
from tasks.orders import OverfitOrder, TrainOrder
from tasks.progress import Track
from tasks.register import code_version
from tasks.settings import Settings
from tasks.stages import StagePlan
from tasks.story import tell, track
from tasks.train_stage import TrainStage, checkpoints_of, open_run, trained
from vitcore import storage
from vitcore.errors import WorkError

_SHOWN = ("train/loss", "train/top1", "train/images_per_s")


def plan_training(stage: TrainStage, settings: Settings, *, fresh: bool) -> tuple[StagePlan, ModelVersion | None]:
    """What `train_model` would do, and the product if it is there."""
    verb = f"train {stage.recipe.name}"
    version = trained(stage, settings)
    if version is None:
        return StagePlan(verb, stage.identity, "run", "no finished run has this recipe and these inputs"), None
    if fresh:
        return StagePlan(verb, stage.identity, "run", f"asked for again; {version.uri} stays"), None
    return StagePlan(verb, stage.identity, "done", f"{version.uri} is its product"), version


@task(name="train", task_run_name="train {stage.recipe.name}")
def train_model(stage: TrainStage, settings: Settings, *, fresh: bool = False) -> ModelVersion:
    """The model version of a stage: the existing one, or trained now, continued from the newest checkpoint.

    Raises:
        RequestError: recipe, data and models do not fit together.
        WorkError: training failed for good; the next call continues it.
    """
    version = None if fresh else trained(stage, settings)
    if version is not None:
        if settings.jobs_address is None:  # left by a kill right after the commit; a job's are where nodes see them
            storage.remove(checkpoints_of(stage, settings, version.run_id))
        tell(settings, f"train {stage.recipe.name}: done before, {version.uri}")
        return version

    def make_order() -> TrainOrder | None:
        if not fresh and trained(stage, settings) is not None:
            return None  # another's job has ended well while this process looked for one
        run_id = open_run(stage, settings, fresh=fresh)
        return TrainOrder(stage=stage, run_id=run_id, fresh=fresh, code=code_version())

    label = f"train {stage.recipe.name}"
    with track(settings, label, None, "steps") as shown:
        name = f"{stage.name} {stage.recipe.name}"
        listener = partial(_show, shown, settings)
        carry_out(stage.identity, name, make_order, settings, listener, fresh=fresh)
    version = trained(stage, settings)
    if version is None:
        raise WorkError(f"{label} ended well, but no version of {stage.name} has its identity {stage.identity}")
    best = runs.get(settings.tracking_uri, version.run_id).metrics.get(f"best/{stage.recipe.eval.metric}")
    kept = "kept the last checkpoint" if best is None else f"{stage.recipe.eval.metric} {best:.3f} on validation"
    tell(settings, f"{label}: {version.uri}, {kept}")
    return version


@task(name="overfit one batch", task_run_name="overfit {stage.recipe.name}")
def overfit_model(stage: TrainStage, settings: Settings) -> dict[str, float]:
    """Memorise one batch and register nothing; see `vitcore.train.overfit`."""
    identity = f"overfit-{stage.identity.rpartition('-')[2]}"
    label = f"overfit {stage.recipe.name}"
    with track(settings, label, None, "steps") as shown:
        name = f"{stage.name} {stage.recipe.name}"
        listener = partial(_show, shown, settings)
        answer = carry_out(identity, name, lambda: OverfitOrder(stage=stage), settings, listener)
    return {str(metric): float(value) for metric, value in answer.items()}


def _show(shown: Track, settings: Settings, message: Message) -> None:
    """A message of the workers, on the progress bar or as a line of the story."""
    if "total" in message:
        metrics = {name.partition("/")[2]: message["metrics"][name] for name in _SHOWN if name in message["metrics"]}
        shown.update(message["step"], message["total"], **(metrics or message["metrics"]))
    elif message["event"] in ("resumed", "skipped", "preempted", "hang", "waiting"):
        tell(settings, f"{message['event']}: {message['detail']}")
