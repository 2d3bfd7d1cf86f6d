"""The photographs of a validation: every sample of a split once, spread over the ranks."""

from __future__ import annotations

from vitcore.data.loading.loader import EvalLoader
from vitcore.train.learner import Learner


def evaluation_loader(learner: Learner, split: str) -> EvalLoader:
    """This rank's range of a split, at the recipe's resolution."""
    recipe, world = learner.request.recipe, learner.world
    return EvalLoader(
        learner.dataset,
        split,
        image_size=recipe.data.image_size,
        resize=recipe.eval.resize,
        batch_size=recipe.eval.batch_size,
        rank=world.rank,
        size=world.size,
        threads=learner.request.compute.loader_workers,
        cache=learner.cache,
    )
