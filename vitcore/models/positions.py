"""Position embeddings on a square grid: fixed ones, and how any are carried to another grid (2010.11929, section 3.2).

Legend of the shape suffixes: P patches, T prefix tokens, N = T + P tokens, D embedding width, F = D / 4 frequencies,
Y and X rows and columns of patches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SLOWEST = 10_000.0


def sincos_position_embedding(grid: int, width: int, *, prefix: int) -> Tensor:
    """Fixed sines and cosines of both axes (1, prefix + grid², D), rows of the prefix zero.

    A quarter of the channels each: sin(x·ω), cos(x·ω), sin(y·ω), cos(y·ω) of a patch in column x and row y, with
    ω_f = 10000^(−f / F), as MAE's (2111.06377, appendix A.1). MoCo v3 (2104.02057) has y before x.

    Args:
        grid: patches along a side.
        width: D; divisible by 4.
        prefix: leading tokens that have no place in the grid.
    """
    frequencies = width // 4
    omega_F = _SLOWEST ** (-torch.arange(frequencies, dtype=torch.float64) / frequencies)
    angles_XF = torch.arange(grid, dtype=torch.float64)[:, None] * omega_F
    waves_XF = torch.cat([angles_XF.sin(), angles_XF.cos()], dim=1)
    of_x_YXF = waves_XF[None].expand(grid, -1, -1)
    of_y_YXF = waves_XF[:, None].expand(-1, grid, -1)
    patches_PD = torch.cat([of_x_YXF, of_y_YXF], dim=2).flatten(0, 1)
    return torch.cat([patches_PD.new_zeros(prefix, width), patches_PD])[None].float()


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
