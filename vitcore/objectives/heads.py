"""What self-supervised objectives put on a backbone: projectors with batch norms over the global batch, DINO's head.

Legend: S slots of this rank, D width of the rows that come in, E of those that go out, K prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcore.world import World

NORM_EPS = 1e-5
NORM_MOMENTUM = 0.1
"""Share of the newest statistics in the running averages."""
INIT_STD = 0.02


class _SumOverRanks(torch.autograd.Function):
    """Σ over the ranks. Every rank's loss depends on the sum, so the gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, world: World) -> Tensor:
        ctx.world = world
        return world.sum(values.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        world: World = ctx.world
        return world.sum(gradient.clone(memory_format=torch.contiguous_format)), None


def sum_over_ranks(values: Tensor, world: World) -> Tensor:
    """A new tensor with the element-wise sum over all ranks; gradients flow back to all of them."""
    summed: Tensor = _SumOverRanks.apply(values, world)
    return summed


class GlobalBatchNorm(nn.Module):
    """Batch norm (1502.03167) over the rows of all ranks whose weight is not 0.

    The result is the same at any number of ranks, and padding leaves no trace in it.

    Args:
        width: D.
        world: the ranks that normalise together.
        affine: whether scale and shift are learned.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, world: World, *, affine: bool = True) -> None:
        super().__init__()
        self._world = world
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, rows_SD: Tensor, weights_S: Tensor) -> Tensor:
        """Rows (S, D) normalised by the statistics of the batch, in evaluation by their running averages."""
        if self.training:
            mean_D, variance_D = self._statistics(rows_SD, weights_S)
        else:
            mean_D, variance_D = self.running_mean, self.running_var
        normed_SD = (rows_SD - mean_D) * torch.rsqrt(variance_D + NORM_EPS)
        return normed_SD if self.weight is None or self.bias is None else normed_SD * self.weight + self.bias

    def _statistics(self, rows_SD: Tensor, weights_S: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance; two sums over the ranks, since E[x²] − E[x]² would lose the digits of a small variance."""
        weights_S1 = weights_S[:, None]
        sums = sum_over_ranks(torch.cat([(weights_S1 * rows_SD).sum(0), weights_S.sum(0, keepdim=True)]), self._world)
        count = sums[-1].detach().clamp_min(1)
        mean_D = sums[:-1] / count
        variance_D = sum_over_ranks((weights_S1 * (rows_SD - mean_D) ** 2).sum(0), self._world) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean_D, NORM_MOMENTUM)
            self.running_var.lerp_(variance_D * count / (count - 1).clamp_min(1), NORM_MOMENTUM)
        return mean_D, variance_D


class Projector(nn.Module):
    """Linear layers, a batch norm after each and a ReLU between them (2104.02057, section 4.3).

    The layers have no bias, which the norm would take away, and the last norm has no scale and shift.

    Args:
        widths: D, the hidden widths, E.
        world: the ranks that normalise together.
    """

    def __init__(self, widths: Sequence[int], world: World) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.layers = nn.ModuleList(nn.Linear(before, after, bias=False) for before, after in pairs)
        self.norms = nn.ModuleList(
            GlobalBatchNorm(after, world, affine=number < len(pairs)) for number, (_, after) in enumerate(pairs, 1)
        )

    def forward(self, rows_SD: Tensor, weights_S: Tensor) -> Tensor:
        """(S, D) to (S, E); rows of weight 0 have no part in the statistics."""
        for number, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            rows_SD = norm(layer(F.relu(rows_SD) if number else rows_SD), weights_S)
        return rows_SD


class DinoHead(nn.Module):
    """DINO's head (2104.14294, section 3.1 and appendix C): an MLP of three layers to a point on the sphere, then its
    cosine with each prototype. That is a linear layer under weight normalisation whose norms stay 1.

    Args:
        width: D.
        hidden: width of the MLP.
        bottleneck: E, dimension of the sphere.
        prototypes: K.
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=INIT_STD)
                nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.prototypes, std=INIT_STD)

    def forward(self, rows_SD: Tensor) -> Tensor:
        """(…, D) to cosines (…, K), in fp32: a temperature of 0.04 makes much of small differences."""
        points_SE: Tensor = self.mlp(rows_SD)
        with torch.autocast(rows_SD.device.type, enabled=False):
            return F.linear(F.normalize(points_SE.float(), dim=-1), F.normalize(self.prototypes, dim=-1))
