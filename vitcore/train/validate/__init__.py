"""Validation while training: what chooses the checkpoint that is kept."""

from __future__ import annotations

import math

import torch

from vitcore.train.learner import Learner
from vitcore.train.validate.labels import by_labels
from vitcore.train.validate.neighbours import by_neighbours
from vitcore.train.validate.retrieval import by_retrieval

__all__ = ["better", "validate"]

_BY = {
    "classify": by_labels,
    "distill": by_labels,
    "contrast": by_retrieval,
    "moco": by_neighbours,
    "dino": by_neighbours,
    "mae": by_neighbours,
}


@torch.no_grad()
def validate(learner: Learner) -> dict[str, float]:
    """Metrics of the (averaged) product on the recipe's validation split, the same on every rank.

    Returns:
        What the function in `_BY` for the recipe's objective says; empty where nothing is validated.
    """
    recipe = learner.request.recipe
    if not recipe.validates:
        return {}
    objective = learner.objective.eval()
    learner.world.share(objective.buffers())  # running statistics of a BatchNorm: rank 0's are those that are kept
    try:
        with learner.parallel.gathered():
            return _BY[recipe.objective.kind](learner)
    finally:
        objective.train()


def better(metric: str, new: dict[str, float], best: dict[str, float]) -> bool:
    """Whether `new` beats `best` (empty: nothing yet). Equal counts as not better: the earlier model stays.

    By the metric ``last`` every model beats those before it.
    """
    if metric == "last" or not best or math.isnan(best[metric]):
        return True
    return new[metric] < best[metric] if metric == "loss" else new[metric] > best[metric]
