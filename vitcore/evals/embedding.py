"""What the first layer of a vision transformer has learned (Dosovitskiy et al. 2021, 2010.11929, figure 7): the filters
of the patch embedding, and how alike the position embeddings are.

Legend: D embedding width, F filters shown, C colour channels, P patches, Y and X rows and columns of the patch grid.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from vitcore.evals import style
from vitcore.evals.attention import transformer_of
from vitcore.models.clip import Clip

_FILTERS = 28  # as in the paper
_COLUMNS = 7
_TILES = 14  # along a side that a page has room for
_GAP = 0.14  # between two tiles, of a tile


def principal_filters(weights_DCYX: Tensor, most: int = _FILTERS) -> tuple[Tensor, Tensor]:
    """The first principal components (F, C, h, w) of D filters, of length 1, and each one's share of the variance (F).

    The sign, which a component has not, is chosen so that its largest value is positive.
    """
    flat_DV = weights_DCYX.detach().float().cpu().flatten(1)
    _, spread, components = torch.linalg.svd(flat_DV - flat_DV.mean(dim=0), full_matrices=False)
    most = min(most, len(components))
    shares = spread.square() / spread.square().sum().clamp_min(torch.finfo(torch.float32).tiny)
    chosen_FV = components[:most]
    peaks_F1 = chosen_FV.gather(1, chosen_FV.abs().argmax(dim=1, keepdim=True))
    return (chosen_FV * peaks_F1.sign()).view(most, *weights_DCYX.shape[1:]), shares[:most]


def filters_figure(model: nn.Module) -> Figure | None:
    """The first principal components of the filters that embed RGB patches, most important first; grey is zero.

    Returns:
        The figure; None for a model that does not embed patches of pixels (a CNN, a hybrid).
    """
    projection = _patch_projection(model)
    if projection is None:
        return None
    found_FCYX, shares_F = principal_filters(projection.weight)
    pixels_FYXC = _stretched(found_FCYX).permute(0, 2, 3, 1).numpy()
    columns = min(_COLUMNS, len(pixels_FYXC))
    mosaic = _mosaic(list(pixels_FYXC), columns)
    rows = -(-len(pixels_FYXC) // columns)
    made, (ax,) = style.figure(0.62 * columns + 0.5, 0.62 * rows + 0.8)
    ax.imshow(mosaic, interpolation="nearest")
    ax.set_axis_off()
    side = projection.kernel_size[0]
    style.title(
        ax,
        "Patch embedding filters",
        f"{len(found_FCYX)} principal components, {side} × {side} pixels, {float(shares_F.sum()):.0%} of the variance",
    )
    return made


def position_similarity(positions_ND: Tensor) -> Tensor:
    """Cosine similarity (N, N) of every two position embeddings."""
    unit_ND = torch.nn.functional.normalize(positions_ND.detach().float().cpu(), dim=1)
    return unit_ND @ unit_ND.T


def positions_figure(model: nn.Module) -> Figure | None:
    """A tile for each patch, at its place in the image: how alike its position embedding and all others are.

    Of more than 14 patches a side, evenly drawn rows and columns are shown.

    Returns:
        The figure; None for a model without position embeddings.
    """
    tower = transformer_of(model)
    if tower is None:
        return None
    grid = tower.grid
    alike_YXYX = position_similarity(tower.pos_embed[0, -(grid**2) :]).view(grid, grid, grid, grid).numpy()
    shown = np.unique(np.linspace(0, grid - 1, min(grid, _TILES)).round().astype(int))
    tiles = [alike_YXYX[row, column] for row in shown for column in shown]
    made, (ax,) = style.figure(5.4, 4.9)
    mosaic = np.ma.masked_invalid(_mosaic(tiles, len(shown)))
    low = float(np.nanmin(mosaic))
    image = ax.imshow(mosaic, cmap="viridis", vmin=low, vmax=1, interpolation="nearest")
    step = mosaic.shape[0] / len(shown)
    places = (np.arange(len(shown)) + 0.5) * step - 0.5
    ax.set_xticks(places, [str(index + 1) for index in shown])
    ax.set_yticks(places, [str(index + 1) for index in shown])
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=0, labelsize=style.SMALL)
    style.labels(ax, "column of the patch", "row of the patch")
    style.title(ax, "Position embeddings", f"a tile a patch: cosine similarity with all {grid} × {grid} patches")
    bar = made.colorbar(image, ax=ax, shrink=0.72, aspect=26, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=style.SMALL, length=0, labelcolor=style.MUTED)
    bar.set_label("cosine similarity", fontsize=style.SMALL, color=style.MUTED, fontfamily=style.FONT)
    return made


def _patch_projection(model: nn.Module) -> nn.Conv2d | None:
    """The convolution that embeds patches of pixels; None where there is none."""
    tower = model.image if isinstance(model, Clip) else model
    found = getattr(getattr(tower, "patch_embed", None), "proj", None)
    return found if isinstance(found, nn.Conv2d) and found.in_channels == 3 else None


def _stretched(filters_BCHW: Tensor) -> Tensor:
    """Each filter in [0, 1] with zero at one half."""
    peaks_B111 = filters_BCHW.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (filters_BCHW / peaks_B111 + 1) / 2


def _mosaic(tiles: list[NDArray[np.float32]], columns: int) -> NDArray[np.float32]:
    """Tiles of one size side by side, `columns` in a row, with gaps: white in colour, empty (NaN) in one channel."""
    height, width, *channels = tiles[0].shape
    gap = max(1, round(_GAP * height))
    rows = -(-len(tiles) // columns)
    size = (rows * (height + gap) - gap, columns * (width + gap) - gap, *channels)
    mosaic = np.full(size, 1.0 if channels else np.nan, np.float32)
    for place, tile in enumerate(tiles):
        top, left = place // columns * (height + gap), place % columns * (width + gap)
        mosaic[top : top + height, left : left + width] = tile
    return mosaic
