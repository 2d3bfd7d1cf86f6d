"""Made-up outcomes whose difficulty is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vitcore.evals.outcomes import Outcomes

MakeOutcomes = Callable[..., Outcomes]


@pytest.fixture
def make_outcomes() -> MakeOutcomes:
    """`make_outcomes(n, classes, signal, seed=0)`: Gaussian logits with `signal` added to the true class."""

    def make(n: int, classes: int | tuple[str, ...], signal: float, seed: int = 0) -> Outcomes:
        names = tuple(f"class {index}" for index in range(classes)) if isinstance(classes, int) else classes
        rng = np.random.default_rng(seed)
        labels = np.concatenate([np.arange(len(names)), rng.integers(0, len(names), n - len(names))])
        logits = rng.standard_normal((n, len(names)), dtype=np.float32)
        logits[np.arange(n), labels] += signal
        return Outcomes(np.array([f"{index:06d}" for index in range(n)]), labels, logits, names)

    return make
