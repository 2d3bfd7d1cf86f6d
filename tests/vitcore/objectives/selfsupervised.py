"""Small models, views and comparisons for the tests of objectives without labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitcore.data.loading.batch import Inputs
from vitcore.models import build
from vitcore.models.classifier import Classifier
from vitcore.recipe import VitConfig

SHAPE: dict[str, Any] = {"patch": 8, "width": 32, "depth": 2, "heads": 2}
WEIGHTS = (1.0, 1.0, 1.0, 0.0, 1.0, 1.0)
"""Of the slots of a batch: one of them counts for nothing."""
SLOTS = len(WEIGHTS)


def vit(seed: int = 0, image_size: int = 32, **config: Any) -> Classifier:
    """A headless ViT whose parameters have all been moved away from where they begin."""
    torch.manual_seed(seed)
    model = build(VitConfig(**SHAPE | config), num_classes=0, image_size=image_size)
    assert isinstance(model, Classifier)
    stir(model)
    return model


def stir(module: nn.Module, spread: float = 0.1) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)


def views(*sizes: int, seed: int = 3) -> Inputs:
    """A batch of `SLOTS` samples with views of these sizes."""
    generator = torch.Generator().manual_seed(seed)
    first, *more = (torch.rand(SLOTS, 3, size, size, generator=generator) for size in sizes)
    none = torch.full((SLOTS,), -1)
    return Inputs(first, none, none, torch.ones(SLOTS), torch.tensor(WEIGHTS), tuple(more))


def spoil_weightless(inputs: Inputs) -> None:
    """Other pixels in the slots that count for nothing."""
    for view in inputs.views:
        view[inputs.weights_S == 0] = torch.rand_like(view[inputs.weights_S == 0])


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Equal up to a share of the largest value of each tensor, or of 1."""
    assert ours.keys() == theirs.keys()
    for name in ours:
        most = tolerance * max(1.0, theirs[name].abs().max().item())
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=most, msg=lambda m, n=name: f"{n}: {m}")
