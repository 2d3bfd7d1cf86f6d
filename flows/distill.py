"""A student learns from a teacher and becomes a registered model version."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.request import run, training
from tasks.jobs import on_cancellation
from tasks.on_mlflow.registry import ModelVersion
from tasks.settings import load
from vitcore.recipe import Compute


@flow(name="distill", flow_run_name="distill {recipe}", on_cancellation=[on_cancellation])
def distill(
    recipe: str,
    data: str,
    teacher: str,
    overrides: dict[str, Any] | None = None,
    compute: Compute | None = None,
    name: str | None = None,
    fresh: bool = False,
    overfit_one_batch: bool = False,
    mixture: list[str] | None = None,
    teacher_top: int | None = None,
) -> ModelVersion | dict[str, float]:
    """Train `recipe` on `data` with `teacher` to follow, and register the model.

    With `overfit_one_batch` nothing is registered: the answer is how well one batch was memorised. `mixture` names
    datasets that are trained on beside `data`, by the weights of `data.mixture`. With `teacher_top` so many
    of the teacher's logits of every view, the largest, are stored beside the data before the training, and replayed;
    what an earlier student left there is not computed again.
    """
    stage = training(
        recipe,
        data,
        load(),
        mixture=mixture or (),
        overrides=overrides,
        compute=compute,
        name=name,
        teacher=teacher,
        teacher_top=teacher_top,
    )
    return run(stage, fresh=fresh, overfit_one_batch=overfit_one_batch)
