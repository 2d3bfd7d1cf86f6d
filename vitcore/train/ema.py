"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Ema:
    """Shadow of a model's parameters: shadow ← decay · shadow + (1 − decay) · parameter, after each step.

    Early in a run the decay is min(decay, (1 + t) ÷ (10 + t)) after t steps, so that the average does not remember
    its random start. Buffers are not averaged: the average borrows the model's.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._parameters = dict(model.named_parameters())
        self.shadow = {name: tensor.detach().clone() for name, tensor in self._parameters.items()}

    def update(self, step: int) -> None:
        """Move the average towards the weights after step number `step` (from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        sources = [tensor.detach() for tensor in self._parameters.values()]
        torch._foreach_lerp_(list(self.shadow.values()), sources, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model holds the average; outside, its own weights again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():  # in place: a sharded parameter's storage is not to be changed
            held = parameter.detach().clone()
            parameter.copy_(self.shadow[name])
            self.shadow[name].copy_(held)
