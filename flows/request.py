"""From what a person asks for (a recipe's name, URLs, references) to a training with everything pinned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.models import resolve
from tasks.on_mlflow.registry import ModelVersion
from tasks.on_ray.cluster import kept
from tasks.settings import Settings, load
from tasks.stages import StagePlan
from tasks.teach import plan_teaching, store_teacher
from tasks.train import overfit_model, plan_training, train_model
from tasks.train_stage import TrainStage, trained
from vitcore.data.dataset.manifest import Dataset
from vitcore.errors import RequestError
from vitcore.recipe import Compute, DistillConfig, apply_overrides
from vitcore.recipes import find
from vitcore.train.request import open_dataset, open_mixture


def training(
    recipe: str,
    data: str,
    settings: Settings,
    *,
    mixture: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    compute: Compute | None = None,
    name: str | None = None,
    model: str | None = None,
    teacher: str | None = None,
    teacher_top: int | None = None,
) -> TrainStage:
    """Validate a request and pin what it names: the dataset's version, aliases of models.

    Args:
        recipe: name of a recipe.
        data: URL of a dataset.
        settings: where models are looked up.
        mixture: URLs of datasets mixed in.
        overrides: dotted field of the recipe → value.
        compute: default: `Compute()`.
        name: registered model; default: the last part of the dataset's URL.
        model: reference to start from.
        teacher: reference to distil from.
        teacher_top: how many logits of a view it stores before the training; default: it answers at every step.
    Raises:
        RequestError: something named does not exist or does not fit; nothing has been started.
    """
    chosen = apply_overrides(find(recipe), dict(overrides or {}))
    dataset = open_dataset(chosen, Dataset.open(data).ref)
    others = [Dataset.open(url).ref for url in mixture]
    classes = open_mixture(chosen, dataset, others).classes
    if chosen.needs_parent and model is None:
        raise RequestError(
            f"recipe {recipe!r} continues another model; run: vit finetune {recipe} --model REF --data {data}"
        )
    follows = isinstance(chosen.objective, DistillConfig)
    if follows and teacher is None:
        raise RequestError(f"recipe {recipe!r} learns from a teacher: name one with --teacher")
    if teacher is not None and not follows:
        raise RequestError(f"recipe {recipe!r} follows no teacher: leave --teacher out, or take one of `vit distill`")
    return TrainStage(
        name=name or dataset.url.rstrip("/").rsplit("/", 1)[-1],
        recipe=chosen,
        compute=compute or Compute(),
        data=dataset.ref,
        mixture=tuple(others),
        init=None if model is None else resolve(model, settings),
        teacher=None if teacher is None else resolve(teacher, settings),
        teacher_top=None if teacher_top is None else min(teacher_top, len(classes)),
    )


def run(stage: TrainStage, *, fresh: bool, overfit_one_batch: bool) -> ModelVersion | dict[str, float]:
    """Train, or try whether one batch can be memorised; what the three training flows have in common."""
    settings = load()
    if overfit_one_batch:
        return overfit_model(stage, settings)
    if stage.teaching is None:
        return train_model(stage, settings, fresh=fresh)
    with kept():
        if fresh or trained(stage, settings) is None:
            store_teacher(stage.teaching, settings)
        return train_model(stage, settings, fresh=fresh)


def plan(
    recipe: str, data: str, *, fresh: bool = False, overfit_one_batch: bool = False, **request: Any
) -> list[StagePlan]:
    """What a training flow would do with the same arguments."""
    settings = load()
    stage = training(recipe, data, settings, **request)
    if overfit_one_batch:
        return [StagePlan(f"overfit {recipe}", "", "run", "one batch is memorised, nothing is registered")]
    planned = plan_training(stage, settings, fresh=fresh)[0]
    teaching = [] if stage.teaching is None or planned.state == "done" else [plan_teaching(stage.teaching)]
    return [*teaching, planned]
