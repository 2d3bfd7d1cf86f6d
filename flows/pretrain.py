"""A recipe trained from scratch becomes a registered model version."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.request import run, training
from tasks.jobs import on_cancellation
from tasks.on_mlflow.registry import ModelVersion
from tasks.settings import load
from vitcore.recipe import Compute


@flow(name="pretrain", flow_run_name="pretrain {recipe}", on_cancellation=[on_cancellation])
def pretrain(
    recipe: str,
    data: str,
    overrides: dict[str, Any] | None = None,
    compute: Compute | None = None,
    name: str | None = None,
    fresh: bool = False,
    overfit_one_batch: bool = False,
    mixture: list[str] | None = None,
) -> ModelVersion | dict[str, float]:
    """Train `recipe` on `data` and register the model.

    With `overfit_one_batch` nothing is registered: the answer is how well one batch was memorised. `mixture` names
    datasets that are trained on beside `data`, by the weights of `data.mixture`.
    """
    stage = training(recipe, data, load(), mixture=mixture or (), overrides=overrides, compute=compute, name=name)
    return run(stage, fresh=fresh, overfit_one_batch=overfit_one_batch)
