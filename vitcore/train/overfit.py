"""The first thing to try when a training does not learn: can it memorise one batch?"""

from __future__ import annotations

import math
from dataclasses import replace

from vitcore.errors import WorkError
from vitcore.recipe import AugmentConfig, LabelConfig, ParentConfig, Recipe, apply_overrides
from vitcore.sink import Sink
from vitcore.train.learner import Learner
from vitcore.train.loop import optimise
from vitcore.train.request import TrainRequest, open_dataset
from vitcore.world import World

PASS_ACCURACY = 0.99
"""Share of the batch that must be classified right."""
PASS_LOSS = 0.5
"""What the loss must fall to, as a share of the first step's, where nothing is classified."""


def overfit_one_batch(request: TrainRequest, world: World, sink: Sink, *, steps: int = 300) -> dict[str, float]:
    """Train on the first batch alone, without augmentation and regularisation, until it is memorised.

    Args:
        request: the training; its recipe is stripped of everything that hinders memorising.
        world: this process's place.
        sink: told the progress.
        steps: optimiser steps to try at most.
    Returns:
        ``steps`` taken, the last ``loss`` and, of an objective that learns from labels, ``top1`` (of the batch itself).
    Raises:
        WorkError: the batch was not memorised: the model, the labels or the learning rate are at fault.
    """
    request = request.model_copy(update={"recipe": bare(request.recipe, steps), "teacher_outputs": None})
    learner = Learner(request, open_dataset(request.recipe, request.data), world)
    recipe = request.recipe
    with learner.loader(stop_step=1) as loader:
        batch = replace(next(iter(loader)), mix=None)
    first = math.nan
    metrics: dict[str, float] = {}
    for step in range(1, steps + 1):
        metrics = optimise(learner, batch).metrics
        first = metrics["loss"] if step == 1 else first
        if world.is_main:
            sink.progress(step, steps, metrics)
        if step > learner.plan.warmup and _memorised(metrics, first):
            return {"steps": step} | {name: metrics[name] for name in ("loss", "top1") if name in metrics}
    classified = "top1" in metrics
    reached = f"top-1 {metrics['top1']:.1%}" if classified else f"at the first step {first:.3f}"
    raise WorkError(
        f"one batch of {recipe.train.batch_size} was not memorised in {steps} steps: loss {metrics['loss']:.3f}, "
        f"{reached}; check {'labels, ' if classified else ''}learning rate and model before training longer"
    )


def _memorised(metrics: dict[str, float], first: float) -> bool:
    """Whether what was learnt says that a batch can be learnt by heart."""
    return metrics["top1"] >= PASS_ACCURACY if "top1" in metrics else metrics["loss"] <= PASS_LOSS * first


def bare(recipe: Recipe, steps: int) -> Recipe:
    """The recipe without augmentation, smoothing, decay, dropout and averaging."""
    still = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), hflip=0.0).model_dump(mode="json")
    overrides: dict[str, object] = {
        "data.augment": still,
        "data.views": [view.model_dump(mode="json") | {"augment": still} for view in recipe.data.views],
        "optim.weight_decay": 0.0,
        "optim.final_weight_decay": None,
        "optim.warmup": f"{max(1, steps // 20)} steps",
        "train.duration": f"{steps} steps",
        "train.ema_decay": None,
    }
    if isinstance(recipe.objective, LabelConfig):
        overrides["objective.label_smoothing"] = 0.0
    if not isinstance(recipe.model, ParentConfig):  # a parent's own rates stay: only it knows which it has
        overrides |= {f"model.{field}": 0.0 for field in ("dropout", "drop_path") if hasattr(recipe.model, field)}
    return apply_overrides(recipe, overrides)
