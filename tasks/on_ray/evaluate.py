"""What a model says of a split, from contiguous ranges spread over the cluster: every sample exactly once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.models import localize
from tasks.on_ray.cluster import cores, gpus
from tasks.on_ray.map import map_unordered
from tasks.settings import Settings
from vitcore.data.dataset.manifest import Dataset, DatasetRef
from vitcore.evals.answers import Answers, join
from vitcore.evals.classify import predict
from vitcore.evals.outcomes import Outcomes, concat
from vitcore.evals.probe import linear_outcomes, neighbour_outcomes
from vitcore.evals.represent import features, image_embeddings, text_embeddings
from vitcore.models.pretrained import Pretrained
from vitcore.models.references import load_reference
from vitcore.train.precision import Capabilities, choose
from vitcore.world import pick_device

_LARGE = 4096
"""Samples from which on a split is cut finer than one range a core, for the sake of progress and balance."""
_TEXTS = 2048  # that a task embeds

Progress = Callable[[int], None]
"""Told how many samples are done."""


@dataclass(frozen=True)
class _Range:
    ask: Callable[..., Any]
    model: str
    settings: Settings
    data: DatasetRef
    split: str
    start: int
    stop: int


@dataclass(frozen=True)
class _Texts:
    model: str
    settings: Settings
    texts: Sequence[str]


@dataclass(frozen=True)
class _Decision:
    protocol: Literal["knn", "linear"]
    bank: Answers
    queries: Answers
    classes: tuple[str, ...]


def predict_split(model: str, data: DatasetRef, split: str, settings: Settings, *, progress: Progress) -> Outcomes:
    """Outcomes of a classifier for a split in its order, from the connected cluster.

    Args:
        model: pinned reference; fetched once a machine.
        data: dataset version.
        split: its name.
        settings: where models come from and are kept.
        progress: told how many samples are done.
    """
    return concat(_over_ranges(predict, model, data, split, settings, None, progress))


def features_of_split(model: str, data: DatasetRef, split: str, settings: Settings, *, progress: Progress) -> Answers:
    """The features a head would read, of every sample of a split; arguments as `predict_split`."""
    return join(_over_ranges(features, model, data, split, settings, None, progress))


def embeddings_of_split(
    model: str, data: DatasetRef, split: str, settings: Settings, *, most: int | None = None, progress: Progress
) -> Answers:
    """A CLIP's embeddings of the first `most` samples of a split (default: all); arguments as `predict_split`."""
    return join(_over_ranges(image_embeddings, model, data, split, settings, most, progress))


def embed_texts(model: str, texts: Sequence[str], settings: Settings) -> NDArray[np.float32]:
    """A CLIP's embeddings of texts, in their order.

    Args:
        model: pinned reference.
        texts: at least one.
        settings: where models come from and are kept.
    """
    parts = [_Texts(model, settings, texts[start : start + _TEXTS]) for start in range(0, len(texts), _TEXTS)]
    found = dict(map_unordered(_embed_texts, parts, gpus=1 if gpus() else 0))
    return np.concatenate([found[position] for position in range(len(parts))])


def decide(protocol: Literal["knn", "linear"], bank: Answers, queries: Answers, classes: Sequence[str]) -> Outcomes:
    """Outcomes of features by those of a bank, on a GPU of the cluster where there is one.

    Raises:
        RequestError: the bank has no label.
    """
    job = _Decision(protocol, bank, queries, tuple(classes))
    ((_, outcomes),) = map_unordered(_decide, [job], gpus=1 if gpus() else 0)
    return outcomes


def _over_ranges(
    ask: Callable[..., Any],
    model: str,
    data: DatasetRef,
    split: str,
    settings: Settings,
    most: int | None,
    progress: Progress,
) -> list[Any]:
    """What `ask` (model, dataset, split, range, …) gives of each range, in their order."""
    samples = Dataset.open(data).split(split).samples
    samples = samples if most is None else min(most, samples)
    parts = min(samples, max(1, gpus() or cores()) * (1 if samples < _LARGE else 4))
    edges = [samples * part // parts for part in range(parts + 1)]
    ranges = [_Range(ask, model, settings, data, split, start, stop) for start, stop in pairwise(edges)]
    found: dict[int, Any] = {}
    done = 0
    for position, answers in map_unordered(_ask_range, ranges, gpus=1 if gpus() else 0):
        found[position] = answers
        done += ranges[position].stop - ranges[position].start
        progress(done)
    return [found[position] for position in range(parts)]


def _ask_range(part: _Range) -> Any:
    """Runs on a Ray worker that was given one core, and a GPU where there are any."""
    model, autocast = _load(part.model, part.settings)
    dataset = Dataset.open(part.data)
    return part.ask(model, dataset, part.split, start=part.start, stop=part.stop, batch_size=64, autocast=autocast)


def _embed_texts(part: _Texts) -> NDArray[np.float32]:
    model, autocast = _load(part.model, part.settings)
    return text_embeddings(model, part.texts, autocast=autocast)


def _decide(job: _Decision) -> Outcomes:
    outcomes_of = neighbour_outcomes if job.protocol == "knn" else linear_outcomes
    return outcomes_of(job.bank, job.queries, job.classes, _device())


def _load(ref: str, settings: Settings) -> tuple[Pretrained, AbstractContextManager[Any]]:
    """The model on this worker's device, and the precision it computes in."""
    device = _device()
    model = load_reference(localize(settings.tracking_uri, settings.home / "models", ref))
    model.model.to(device)
    return model, choose("auto", Capabilities.of(device)).autocast()


def _device() -> torch.device:
    device = pick_device("auto")
    if device.type == "cpu":
        torch.set_num_threads(1)
    return device
