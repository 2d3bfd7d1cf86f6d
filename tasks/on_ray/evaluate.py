"""A model's answers for a split, from contiguous ranges spread over the cluster: every sample exactly once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from tasks.models import localize
from tasks.on_ray.cluster import cores, gpus
from tasks.on_ray.map import map_unordered
from tasks.settings import Settings
from vitcore.data.dataset.manifest import Dataset, DatasetRef
from vitcore.evals.classify import predict
from vitcore.evals.outcomes import Outcomes, concat
from vitcore.models.references import load_reference
from vitcore.train.precision import Capabilities, choose
from vitcore.world import pick_device

_LARGE = 4096
"""Samples from which on a split is cut finer than one range a core, for the sake of progress and balance."""


@dataclass(frozen=True)
class _Range:
    model: str
    settings: Settings
    data: DatasetRef
    split: str
    start: int
    stop: int


def predict_split(
    model: str, data: DatasetRef, split: str, settings: Settings, *, progress: Callable[[int], None]
) -> Outcomes:
    """Outcomes of a split in its order, from the connected cluster.

    Args:
        model: pinned reference; fetched once a machine.
        data: dataset version.
        split: its name.
        settings: where models come from and are kept.
        progress: told how many samples are done.
    """
    samples = Dataset.open(data).split(split).samples
    parts = min(samples, max(1, gpus() or cores()) * (1 if samples < _LARGE else 4))
    edges = [samples * part // parts for part in range(parts + 1)]
    ranges = [_Range(model, settings, data, split, start, stop) for start, stop in pairwise(edges)]
    found: dict[int, Outcomes] = {}
    for position, outcomes in map_unordered(_predict_range, ranges, gpus=1 if gpus() else 0):
        found[position] = outcomes
        progress(sum(map(len, found.values())))
    return concat([found[position] for position in range(parts)])


def _predict_range(part: _Range) -> Outcomes:
    """Runs on a Ray worker that was given one core, and a GPU where there are any."""
    device = pick_device("auto")
    if device.type == "cpu":
        torch.set_num_threads(1)
    cache = part.settings.home / "models"
    model = load_reference(localize(part.settings.tracking_uri, cache, part.model))
    model.model.to(device)
    autocast = choose("auto", Capabilities.of(device)).autocast()
    return predict(
        model, Dataset.open(part.data), part.split, start=part.start, stop=part.stop, batch_size=64, autocast=autocast
    )
