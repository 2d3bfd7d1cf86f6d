"""Networks that follow another one at a distance (1911.05722, section 3.2): MoCo's second encoder, DINO's teacher."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitcore.objectives.heads import GlobalBatchNorm

N = TypeVar("N", bound=nn.Module)


class Momentum(nn.Module, Generic[N]):
    """A copy of a network whose parameters are its moving average. It learns nothing by gradient.

    It drops nothing out, in training neither: what it says is what the other network is to find. Its batch norms
    alone tell training from evaluation, as those of the other network do.

    Args:
        source: the network that is copied, with its weights as they are now, on its device.
    """

    def __init__(self, source: N) -> None:
        super().__init__()
        self.network: N = deepcopy(source).requires_grad_(False)
        self.train(source.training)

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        """What the network says, without gradient."""
        return self.network(*inputs)

    def train(self, mode: bool = True) -> Momentum[N]:
        """Put the batch norms into training or evaluation; all else stays in evaluation."""
        super().train(mode)
        for module in self.network.modules():
            module.training = mode and isinstance(module, _BatchNorm | GlobalBatchNorm)
        return self

    @torch.no_grad()
    def follow(self, source: N, momentum: float) -> None:
        """parameter ← momentum · parameter + (1 − momentum) · the source's.

        Buffers are its own: statistics of what it has seen itself.
        """
        mine, theirs = ([parameter.detach() for parameter in net.parameters()] for net in (self.network, source))
        torch._foreach_lerp_(mine, theirs, 1 - momentum)


def momentum_at(start: float, step: int, total: int) -> float:
    """Momentum after step number `step` (from 0) of `total`: from `start` to 1 along a cosine (2006.07733, appendix;
    taken up by MoCo v3, 2104.02057, and DINO, 2104.14294).
    """
    return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * step / total))
