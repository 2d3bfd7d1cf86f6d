"""What each head of the last block looks at, as in DINO (Caron et al. 2021, 2104.14294, figures 1 and 3).

Legend: B images, A attention heads, P patches, Y and X rows and columns of the patch grid, H and W pixels.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from vitcore.evals import style
from vitcore.evals.attention import enlarged, last_block_maps, pixels_of, transformer_of

MASS = 0.6
"""Share of a head's attention that its mask keeps (2104.14294, figure 3)."""
_HEADS = 8  # columns that a page has room for
_PHOTOGRAPHS = 4
_CELL = 1.15  # inches


def mass_mask(maps_BAYX: Tensor, share: float = MASS) -> Tensor:
    """The fewest patches that hold at least `share` of each map's attention: bool (B, A, Y, X)."""
    flat_BAP = maps_BAYX.flatten(2)
    sorted_BAP, order_BAP = flat_BAP.sort(dim=2, descending=True)
    before_BAP = sorted_BAP.cumsum(dim=2) - sorted_BAP
    kept_BAP = before_BAP < share * flat_BAP.sum(dim=2, keepdim=True)
    return kept_BAP.new_zeros(kept_BAP.shape).scatter(2, order_BAP, kept_BAP).view_as(maps_BAYX)


def heads_figure(model: nn.Module, images_BCHW: Tensor) -> Figure | None:
    """Photographs, and beside each what every head of the last block attends to: its map, and below it the patches
    that hold 60 % of it. Below the photograph stand the heads' masks together, a colour each.

    Args:
        model: any; its vision transformer is looked at.
        images_BCHW: uint8, or float in [0, 1]; not normalised, of the model's input size. The first four are shown.
    Returns:
        The figure, bound to no display; None for a model without attention, or without photographs.
    """
    tower = transformer_of(model)
    if tower is None or not len(images_BCHW):
        return None
    images_BCHW = images_BCHW[:_PHOTOGRAPHS]
    maps_BAYX = last_block_maps(tower, images_BCHW)[:, :_HEADS]
    count, heads = maps_BAYX.shape[:2]
    size = tower.image_size
    heat_BAHW = enlarged(maps_BAYX.flatten(0, 1), size).view(count, heads, size, size).numpy()
    masks_BAYX = F.interpolate(mass_mask(maps_BAYX).float(), size=(size, size), mode="nearest")
    masks_BAHW = masks_BAYX.numpy().astype(bool)
    pixels_BHWC = pixels_of(images_BCHW).permute(0, 2, 3, 1).clamp(0, 1).numpy()
    made = Figure(figsize=(_CELL * (heads + 1) + 0.2, 2 * _CELL * count + 0.75), dpi=style.DPI, layout="constrained")
    FigureCanvasAgg(made)
    made.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)  # type: ignore[union-attr, call-arg]
    made.suptitle(
        f"Heads of the last block: attention, and the patches that hold {MASS:.0%} of it",
        x=0.01,
        ha="left",
        fontsize=style.TITLE,
        fontweight="bold",
        fontfamily=style.FONT,
        color=style.INK,
    )
    axes = made.subplots(2 * count, heads + 1, squeeze=False)
    for panel in axes.flat:
        panel.set_axis_off()
    for place in range(count):
        above, below = axes[2 * place], axes[2 * place + 1]
        photograph = pixels_BHWC[place]
        above[0].imshow(photograph)
        below[0].imshow(_together(photograph, masks_BAHW[place]))
        for head in range(heads):
            above[head + 1].imshow(heat_BAHW[place, head], cmap="viridis", vmin=0, vmax=1)
            inside_HW1 = masks_BAHW[place, head, :, :, None]
            below[head + 1].imshow(np.where(inside_HW1, photograph, _pale(photograph)))
    _name(axes[0], heads)
    return made


def _together(photograph: NDArray[np.float32], masks_BHW: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The photograph in grey, with the heads' masks over it; where they overlap, their colours mix."""
    colours_A3 = np.array([to_rgb(style.CYCLE[head % len(style.CYCLE)]) for head in range(len(masks_BHW))])
    covered_HW1 = masks_BHW.sum(axis=0)[:, :, None]
    mixed_HW3 = np.einsum("ahw,ac->hwc", masks_BHW.astype(np.float64), colours_A3) / np.maximum(covered_HW1, 1)
    grey_HW1 = photograph.mean(axis=2, keepdims=True)
    tinted_HW3 = 0.35 * grey_HW1 + 0.65 * mixed_HW3
    return np.where(covered_HW1 > 0, tinted_HW3, _pale(photograph))


def _pale(photograph: NDArray[np.float32]) -> NDArray[np.float32]:
    """A light grey copy (H, W, 3), against which both dark and bright parts of the photograph stand out."""
    return np.repeat(0.55 + 0.35 * photograph.mean(axis=2, keepdims=True), 3, axis=2).astype(np.float32)


def _name(row: NDArray[np.object_], heads: int) -> None:
    """Column titles; a head's is in its colour."""
    panels: list[Axes] = list(row)
    panels[0].set_title("photograph", fontsize=style.SMALL, fontfamily=style.FONT, color=style.MUTED)
    for head in range(heads):
        colour = style.CYCLE[head % len(style.CYCLE)]
        panels[head + 1].set_title(f"head {head + 1}", fontsize=style.SMALL, fontfamily=style.FONT, color=colour)
