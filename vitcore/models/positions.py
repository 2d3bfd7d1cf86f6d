"""Position embeddings on a square grid, and how they are carried to another grid (2010.11929, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_position_embedding(positions_ND: Tensor, grid: int, *, prefix: int) -> Tensor:
    """Position embeddings for a square grid of `grid` × `grid` patches, by antialiased bicubic interpolation.

    Args:
        positions_ND: (1, prefix + patches, D), of a square grid.
        grid: patches along a side of the new image.
        prefix: leading tokens that have no place in the grid; they are kept.
    """
    tokens_1TD, patches_1PD = positions_ND[:, :prefix], positions_ND[:, prefix:]
    old = round(patches_1PD.shape[1] ** 0.5)
    if old == grid:
        return positions_ND
    plane_1DYX = patches_1PD.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized_1DYX = F.interpolate(plane_1DYX, size=(grid, grid), mode="bicubic", antialias=True)
    resized_1PD = resized_1DYX.permute(0, 2, 3, 1).flatten(1, 2).to(positions_ND.dtype)
    return torch.cat([tokens_1TD, resized_1PD], dim=1)
