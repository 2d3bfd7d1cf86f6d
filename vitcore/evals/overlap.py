"""What a score is worth on the photographs that the model was not trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitcore.data.audit.overlap import Overlap
from vitcore.data.dataset.manifest import Dataset
from vitcore.evals.answers import sample_keys
from vitcore.evals.outcomes import Outcomes
from vitcore.evals.report import TrainingOverlap, score


def training_overlap(
    dataset: Dataset, split: str, outcomes: Outcomes, overlaps: Sequence[Overlap], missing: Sequence[str] = ()
) -> TrainingOverlap:
    """The overlaps of a split with all that a model was trained on, as one, and the metrics without them.

    Args:
        dataset: the evaluated version.
        split: its split.
        outcomes: the model's, for the whole split.
        overlaps: of the split with each version trained on.
        missing: training data that could not be compared with, a sentence each.
    """
    samples = dataset.split(split).samples
    exact, known = np.zeros(samples, bool), np.zeros(samples, bool)
    for overlap in overlaps:
        known[overlap.rows] = True
        exact[overlap.rows[overlap.exact]] = True
    strange = ~np.isin(outcomes.keys, sample_keys(dataset, split)[known].astype(np.str_))
    clean = strange.any() and not strange.all()
    return TrainingOverlap(
        training=tuple(overlap.summary.training for overlap in overlaps),
        missing=tuple(missing),
        samples=samples,
        exact=int(exact.sum()),
        near=int((known & ~exact).sum()),
        clean=score(_some(outcomes, strange)) if clean else {},
    )


def _some(outcomes: Outcomes, which: NDArray[np.bool_]) -> Outcomes:
    return Outcomes(outcomes.keys[which], outcomes.labels[which], outcomes.logits[which], outcomes.classes)
