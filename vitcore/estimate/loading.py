"""How fast photographs are read, decoded and augmented here: a little of the training's own loader, timed."""

from __future__ import annotations

import time
from dataclasses import dataclass

from vitcore.data.loading.loader import TrainLoader
from vitcore.estimate.subject import Subject
from vitcore.train.learner import cache_of

_BATCH = 64  # samples; a batch of thousands would only be waited for
_LEAST, _SECONDS = 3, 2.0  # batches that are timed at least, and for how long


@dataclass(frozen=True, slots=True)
class Loading:
    """Measured on this machine."""

    images_per_s: float
    """Samples/s of one worker, each with all its views."""
    threads: int
    """That it decoded with (`compute.loader_workers`)."""


def measure_loading(subject: Subject) -> Loading:
    """Time the loader of a worker for two seconds.

    Raises:
        WorkError: the dataset cannot be read.
    """
    recipe, compute = subject.recipe, subject.request.compute
    batch_size = min(_BATCH, recipe.train.batch_size, subject.fewest)
    with TrainLoader(
        subject.dataset,
        recipe.data.model_copy(update={"lanes": None}),
        others=subject.mixture.datasets[1:],
        batch_size=batch_size,
        seed=recipe.train.seed,
        threads=compute.loader_workers,
        depth=1,  # what is prepared ahead would be counted as quick
        cache=cache_of(compute),
    ) as loader:
        next(loader)
        next(loader)
        began, batches = time.perf_counter(), 0
        while batches < _LEAST or time.perf_counter() - began < _SECONDS:
            next(loader)
            batches += 1
        took = time.perf_counter() - began
    return Loading(batches * batch_size / took, compute.loader_workers)
