"""A model continued on a dataset, often at another resolution, becomes a registered model version."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.request import run, training
from tasks.jobs import on_cancellation
from tasks.on_mlflow.registry import ModelVersion
from tasks.settings import load
from vitcore.recipe import Compute


@flow(name="finetune", flow_run_name="finetune {recipe}", on_cancellation=[on_cancellation])
def finetune(
    recipe: str,
    data: str,
    model: str,
    overrides: dict[str, Any] | None = None,
    compute: Compute | None = None,
    name: str | None = None,
    fresh: bool = False,
    overfit_one_batch: bool = False,
    mixture: list[str] | None = None,
    teacher: str | None = None,
) -> ModelVersion | dict[str, float]:
    """Continue `model` on `data` by `recipe`, and register the result.

    With `overfit_one_batch` nothing is registered: the answer is how well one batch was memorised. `mixture` names
    datasets that are trained on beside `data`, by the weights of `data.mixture`. `teacher` is followed by recipes that
    go on distilling, and by no others.
    """
    stage = training(
        recipe,
        data,
        load(),
        mixture=mixture or (),
        overrides=overrides,
        compute=compute,
        name=name,
        model=model,
        teacher=teacher,
    )
    return run(stage, fresh=fresh, overfit_one_batch=overfit_one_batch)
