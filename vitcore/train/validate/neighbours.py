"""Validation of features that nothing was trained on: do photographs of a class lie together?

Legend: N photographs of the bank, S of a batch, D width of the features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vitcore.data.loading.batch import Batch, to_inputs
from vitcore.measures.neighbours import neighbour_votes
from vitcore.models.classifier import Classifier
from vitcore.train.learner import Learner
from vitcore.train.validate.split import evaluation_loader

BANK = 10_000
"""Most training photographs that vote."""
STRETCHES = 20
"""Runs of neighbouring photographs that a bank which is not the whole split is cut into: few enough to read well."""


class Bank(NamedTuple):
    """Training photographs with their features, on every rank."""

    features_ND: Tensor
    labels_N: Tensor
    bad: int
    """Photographs that could not be read."""


def by_neighbours(learner: Learner) -> dict[str, float]:
    """``knn``: accuracy of the vote of the nearest training photographs (1805.01978) about those of the validation
    split that could be read, and how many of either could not (``bad_samples``).

    Voters are at most `BANK` photographs, spread evenly over the training split and seen as in evaluation; the same at
    any number of ranks.
    """
    world, classes = learner.world, len(learner.dataset.manifest.classes)
    bank = _bank(learner)
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    hits, count, bad = sums
    with evaluation_loader(learner, learner.request.recipe.eval.split) as loader:
        for batch in loader:
            learner.at(learner.progress.step, "validating")
            bad += len(batch.bad)
            features_SD, labels_S, _ = _readable(learner, batch)
            votes_SK = neighbour_votes(features_SD, bank.features_ND, bank.labels_N, classes)
            hits += (votes_SK.argmax(1) == labels_S).sum()
            count += len(labels_S)
    world.sum(sums)
    return {"knn": (hits / count.clamp_min(1)).item(), "bad_samples": bad.item() + bank.bad}


def spans(total: int, most: int, stretches: int) -> list[tuple[int, int]]:
    """At most `most` of `total` rows, as `stretches` runs (start, stop) that begin at even distances; all, as one run,
    where they are few enough.
    """
    if total <= most:
        return [(0, total)]
    starts = [number * total // stretches for number in range(stretches)]
    return [(start, start + most // stretches) for start in starts]


def _bank(learner: Learner) -> Bank:
    """Each rank fills in its part of every run; the sum over the ranks, of which all others left zeros, joins them."""
    product, world, split = learner.objective.product, learner.world, learner.request.recipe.data.train_split
    assert isinstance(product, Classifier)
    runs = spans(learner.dataset.split(split).samples, BANK, STRETCHES)
    size = sum(stop - start for start, stop in runs)
    features_ND = torch.zeros(size, product.width, device=world.device)
    readable_N = torch.zeros(size, dtype=torch.int64, device=world.device)  # 1 + label; 0: none
    bad = torch.zeros(1, dtype=torch.int64, device=world.device)
    place = 0
    for start, stop in runs:
        with evaluation_loader(learner, split, first=start, most=stop - start) as loader:
            for batch in loader:
                learner.at(learner.progress.step, "validating")
                bad += len(batch.bad)
                rows_SD, labels_S, samples_S = _readable(learner, batch)
                features_ND[samples_S - start + place] = rows_SD
                readable_N[samples_S - start + place] = labels_S + 1
        place += stop - start
    for part in (features_ND, readable_N, bad):
        world.sum(part)
    there_N = readable_N > 0
    return Bank(features_ND[there_N], readable_N[there_N] - 1, int(bad))


def _readable(learner: Learner, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels and rows of the photographs of a batch that could be read and have a label."""
    inputs = to_inputs(batch, learner.world.device)
    with learner.precision.autocast():
        features_SD = learner.objective.predict(inputs.images_SCHW).float()
    there_S = (inputs.weights_S > 0) & (inputs.labels_S >= 0)
    return features_SD[there_S], inputs.labels_S[there_S], batch.samples_S.to(there_S.device)[there_S]
