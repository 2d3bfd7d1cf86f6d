"""Made-up outcomes whose difficulty is known, and small models of every kind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from vitcore.evals.outcomes import Outcomes
from vitcore.models import ModelCard, Pretrained, build
from vitcore.recipe import ClipConfig, ModelConfig, TextConfig, VitConfig

MakeOutcomes = Callable[..., Outcomes]
MakePretrained = Callable[..., Pretrained]

SMALL_CLIP = ClipConfig(
    width=24,
    image=VitConfig(patch=8, width=32, depth=2, heads=2),
    text=TextConfig(context=16, width=16, depth=1, heads=2),
)


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


@pytest.fixture(scope="session")
def make_pretrained() -> MakePretrained:
    """`make_pretrained(config, classes=())`: a model of 32 pixels whose weights are drawn large enough to matter."""

    def make(config: ModelConfig, classes: tuple[str, ...] = ()) -> Pretrained:
        torch.manual_seed(0)
        model = build(config, num_classes=len(classes), image_size=32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        card = ModelCard(model=config, image_size=32, num_classes=len(classes), classes=classes, resize=32)
        return Pretrained(model, card, "0" * 16)

    return make


@pytest.fixture(scope="session")
def clip(make_pretrained: MakePretrained) -> Pretrained:
    """A small image and text model."""
    return make_pretrained(SMALL_CLIP)
