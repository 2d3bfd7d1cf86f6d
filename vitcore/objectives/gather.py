"""Rows of all ranks on every rank, with their gradient.

Legend: S slots of a rank (the same number on each), W ranks, E anything.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vitcore.world import World


class _Gather(torch.autograd.Function):
    """An all-gather whose derivative is exact: a row's gradient is the sum of what all ranks' losses say of it."""

    @staticmethod
    def forward(ctx: Any, rows_SE: Tensor, rank: int, size: int) -> Tensor:
        ctx.own = slice(rank * len(rows_SE), (rank + 1) * len(rows_SE))
        parts = [torch.empty_like(rows_SE) for _ in range(size)]
        dist.all_gather(parts, rows_SE.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.own], None, None


def gather(rows_SE: Tensor, world: World) -> Tensor:
    """The rows [W · S, E] of all ranks, by rank; this rank's own ones where there is only one.

    Every rank must come here with as many rows, and if one goes backward through the result all must: both ways are
    collectives. The gradient of this rank's rows is that of the sum of all ranks' losses.
    """
    if not world.distributed:
        return rows_SE
    gathered: Tensor = _Gather.apply(rows_SE, world.rank, world.size)
    return gathered
