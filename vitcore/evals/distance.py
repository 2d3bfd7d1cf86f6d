"""How far attention reaches at each depth (Dosovitskiy et al. 2021, 2010.11929, figure 7 right and appendix D.7).

Legend: B images, L blocks, A attention heads, N tokens, P patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from vitcore.evals import style
from vitcore.evals.attention import attention_of, transformer_of


def patch_distances(grid: int, side: float) -> Tensor:
    """Distance (P, P) of every two patches' centres, in pixels.

    Args:
        grid: patches along a side of the image.
        side: of a patch, in pixels.
    """
    places_G = torch.arange(grid, dtype=torch.float32) * side
    centres_P2 = torch.cartesian_prod(places_G, places_G)
    return torch.cdist(centres_P2, centres_P2)


def mean_attention_distances(maps: Sequence[Tensor], grid: int, side: float) -> Tensor:
    """Mean distance between a patch and what it attends to (L, A), in pixels, over all patches and images.

    Attention to prefix tokens, which have no place, is left out and the rest scaled to one.

    Args:
        maps: softmax weights of each block, (B, A, N, N).
        grid: patches along a side.
        side: of a patch, in pixels.
    """
    distances_PP = patch_distances(grid, side)
    patches = grid * grid
    found = []
    for map_BANN in maps:
        shares_BAPP = map_BANN[:, :, -patches:, -patches:]
        shares_BAPP = shares_BAPP / shares_BAPP.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        found.append((shares_BAPP * distances_PP).sum(dim=-1).mean(dim=(0, 2)))
    return torch.stack(found)


def distance_figure(model: nn.Module, images_BCHW: Tensor) -> Figure | None:
    """Mean attention distance of every head by depth, their mean, and where a head that looks everywhere would lie.

    Args:
        model: any; its vision transformer is looked at.
        images_BCHW: uint8, or float in [0, 1]; not normalised, of the model's input size.
    Returns:
        The figure; None for a model without attention, or without photographs.
    """
    tower = transformer_of(model)
    if tower is None or not len(images_BCHW):
        return None
    side = tower.image_size / tower.grid
    found_LA = mean_attention_distances(attention_of(tower, images_BCHW), tower.grid, side)
    blocks = torch.arange(1, len(found_LA) + 1)
    everywhere = patch_distances(tower.grid, side).mean().item()
    made, (ax,) = style.figure(5.6, 4.0)
    ax.axhline(everywhere, color=style.MUTED, linewidth=1, linestyle=(0, (3, 3)), label="everywhere alike")
    ax.plot(blocks, found_LA.mean(dim=1), color=style.SKY, linewidth=1.6, label="mean of the heads")
    ax.scatter(
        blocks.repeat_interleave(found_LA.shape[1]),
        found_LA.flatten(),
        s=26,
        color=style.BLUE,
        edgecolor="white",
        linewidth=0.7,
        zorder=3,
        label="a head",
    )
    ax.set_ylim(0, 1.12 * max(everywhere, found_LA.max().item()))
    ax.set_xlim(0.5, len(found_LA) + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(12, integer=True, steps=(1, 2, 5, 10)))
    style.grid(ax, "y")
    style.labels(ax, "block", "mean attention distance, pixels")
    style.title(ax, "How far attention reaches", f"image of {tower.image_size} pixels, patches of {side:g}")
    ax.legend(
        frameon=False,
        labelcolor=style.INK,
        prop={"family": style.FONT, "size": style.SMALL},
        loc="upper center",
        bbox_to_anchor=(0.5, -0.18),
        ncols=3,
    )
    return made
