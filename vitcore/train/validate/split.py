"""The photographs of a validation: every sample of a split once, spread over the ranks."""

from __future__ import annotations

from vitcore.data.loading.loader import EvalLoader
from vitcore.train.learner import Learner


def evaluation_loader(learner: Learner, split: str, *, first: int = 0, most: int | None = None) -> EvalLoader:
    """This rank's range of a split, or of at most `most` photographs of it from row `first` on, at the recipe's
    resolution.

    With `most`, ranks may have unlike numbers of batches.
    """
    recipe, world = learner.request.recipe, learner.world
    total = learner.dataset.split(split).samples
    count = None if most is None else min(most, total - first)
    return EvalLoader(
        learner.dataset,
        split,
        image_size=recipe.data.image_size,
        resize=recipe.eval.resize,
        batch_size=recipe.eval.batch_size,
        rank=world.rank,
        size=world.size,
        start=None if count is None else first + world.rank * count // world.size,
        stop=None if count is None else first + (world.rank + 1) * count // world.size,
        threads=learner.request.compute.loader_workers,
        cache=learner.cache,
    )
