"""Means over seeds and how sure they are: Student's t, paired where two contestants share a seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from vitcore.evals.statistics import Estimate

_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""97.5 % quantiles of Student's distribution, by the number of seeds."""


def mean(values: Sequence[float]) -> Estimate:
    """The mean over seeds and its 95 % confidence interval."""
    centre = statistics.fmean(values)
    half = _T[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(centre, centre - half, centre + half, len(values))


def gain(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """The mean difference of contestants that share their seeds, and its 95 % confidence interval."""
    return mean([one - other for one, other in zip(ours, theirs, strict=True)])
