"""The first thing to try when a training does not learn: can it memorise one batch?"""

from __future__ import annotations

from dataclasses import replace

from vitcore.data.loading.loader import TrainLoader
from vitcore.errors import WorkError
from vitcore.recipe import ParentConfig, Recipe, apply_overrides
from vitcore.sink import Sink
from vitcore.train.learner import Learner
from vitcore.train.loop import optimise
from vitcore.train.request import TrainRequest, open_dataset
from vitcore.world import World

PASS_ACCURACY = 0.99
"""Share of the batch that must be classified right."""


def overfit_one_batch(request: TrainRequest, world: World, sink: Sink, *, steps: int = 300) -> dict[str, float]:
    """Train on the first batch alone, without augmentation and regularisation, until it is memorised.

    Args:
        request: the training; its recipe is stripped of everything that hinders memorising.
        world: this process's place.
        sink: told the progress.
        steps: optimiser steps to try at most.
    Returns:
        ``steps`` taken and the last ``loss`` and ``top1`` (of the batch itself).
    Raises:
        WorkError: the batch was not memorised: the model, the labels or the learning rate are at fault.
    """
    request = request.model_copy(update={"recipe": bare(request.recipe, steps)})
    learner = Learner(request, open_dataset(request.recipe, request.data), world)
    recipe = request.recipe
    with TrainLoader(
        learner.dataset,
        recipe.data,
        others=learner.mixture.datasets[1:],
        batch_size=recipe.train.batch_size,
        seed=recipe.train.seed,
        rank=world.rank,
        size=world.size,
        stop_step=1,
        threads=request.compute.loader_workers,
        cache=learner.cache,
    ) as loader:
        batch = replace(next(iter(loader)), mix=None)
    metrics: dict[str, float] = {}
    for step in range(1, steps + 1):
        metrics = optimise(learner, batch).metrics
        if world.is_main:
            sink.progress(step, steps, metrics)
        if metrics["top1"] >= PASS_ACCURACY and step > learner.plan.warmup:
            return {"steps": step, "loss": metrics["loss"], "top1": metrics["top1"]}
    raise WorkError(
        f"one batch of {recipe.train.batch_size} was not memorised in {steps} steps: loss {metrics['loss']:.3f}, "
        f"top-1 {metrics['top1']:.1%}; check labels, learning rate and model before training longer"
    )


def bare(recipe: Recipe, steps: int) -> Recipe:
    """The recipe without augmentation, smoothing, decay, dropout and averaging."""
    overrides: dict[str, object] = {
        "data.augment.crop_scale": (1.0, 1.0),
        "data.augment.crop_ratio": (1.0, 1.0),
        "data.augment.hflip": 0.0,
        "data.augment.vflip": 0.0,
        "data.augment.randaug_layers": 0,
        "data.augment.jitter": (0.0, 0.0, 0.0, 0.0),
        "data.augment.grey": 0.0,
        "data.augment.blur": 0.0,
        "data.augment.solarize": 0.0,
        "data.augment.erasing": 0.0,
        "data.augment.mixup": 0.0,
        "data.augment.cutmix": 0.0,
        "objective.label_smoothing": 0.0,
        "optim.weight_decay": 0.0,
        "optim.warmup": f"{max(1, steps // 20)} steps",
        "train.duration": f"{steps} steps",
        "train.ema_decay": None,
    }
    if not isinstance(recipe.model, ParentConfig):  # a parent's own rates stay: only it knows which it has
        overrides |= {f"model.{field}": 0.0 for field in ("dropout", "drop_path") if hasattr(recipe.model, field)}
    return apply_overrides(recipe, overrides)
