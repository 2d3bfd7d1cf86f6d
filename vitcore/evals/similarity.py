"""How near photographs and texts lie in a CLIP's space, as a grid (Radford et al. 2021, 2103.00020, figure 1)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from vitcore.evals import style
from vitcore.evals.attention import pixels_of

_CELL = 0.92  # inches
_TEXT = 2.9  # inches beside the grid
_LINE, _LINES = 44, 3  # characters of a text's line, and lines
_DARK = 0.55  # of the colour scale, from where on numbers are white


def similarity_figure(
    images_BCHW: Tensor, texts: Sequence[str], cosines: NDArray[np.float32], belongs: Sequence[Sequence[int]]
) -> Figure | None:
    """Photographs above the columns, texts beside the rows, their cosine similarity in the cells.

    Args:
        images_BCHW: B photographs, uint8 or float in [0, 1].
        texts: R of them.
        cosines: (R, B).
        belongs: for each text the photographs that it says the truth about; their cells are framed.
    Returns:
        The figure, bound to no display; None without photographs or texts.
    """
    rows, columns = len(texts), len(images_BCHW)
    if not rows or not columns:
        return None
    made = Figure(figsize=(_TEXT + _CELL * columns, 0.75 + _CELL + 0.72 * _CELL * rows), dpi=style.DPI)
    FigureCanvasAgg(made)
    width, height = made.get_size_inches()
    left, right = _TEXT / width, 1 - 0.12 / width
    bottom, split, top = 0.12 / height, (0.12 + 0.72 * _CELL * rows) / height, 1 - 0.62 / height
    grid = made.add_axes((left, bottom, right - left, split - bottom))
    low, high = float(cosines.min()), float(cosines.max())
    grid.imshow(cosines, cmap=style.SHADES, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    grid.set_axis_off()
    for (row, column), value in np.ndenumerate(cosines):
        share = (value - low) / max(high - low, 1e-9)
        colour = "white" if share > _DARK else style.INK
        note: dict[str, Any] = {"ha": "center", "va": "center", "color": colour, "fontfamily": style.FONT}
        grid.text(column, row, f"{value:.2f}", fontsize=style.TEXT, **note)
    for row, owned in enumerate(belongs):
        for column in owned:
            frame = Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor=style.ORANGE, linewidth=2)
            grid.add_patch(frame)
    for row, text in enumerate(texts):
        lines = textwrap.shorten(text, _LINE * _LINES - 6, placeholder=" …")
        wrapped = "\n".join(textwrap.wrap(lines, _LINE))
        at: dict[str, Any] = {
            "xy": (-0.5, row),
            "xytext": (-8, 0),
            "textcoords": "offset points",
            "annotation_clip": False,
        }
        grid.annotate(
            wrapped, **at, ha="right", va="center", fontsize=style.SMALL, color=style.INK, fontfamily=style.FONT
        )
    each = (right - left) / columns
    for column, photograph in enumerate(pixels_of(images_BCHW).permute(0, 2, 3, 1).clamp(0, 1).numpy()):
        panel = made.add_axes((left + column * each + 0.03 * each, split + 0.05 / height, 0.94 * each, top - split))
        panel.imshow(photograph)
        panel.set_anchor("S")
        panel.set_axis_off()
    title: dict[str, Any] = {"ha": "left", "va": "top", "fontfamily": style.FONT}
    at_x, at_y = 0.12 / width, 1 - 0.1 / height
    made.text(at_x, at_y, "Photographs and texts", fontsize=style.TITLE, fontweight="bold", color=style.INK, **title)
    note_y = at_y - 0.2 / height
    made.text(
        at_x,
        note_y,
        "cosine similarity; framed: what belongs together",
        fontsize=style.TEXT,
        color=style.MUTED,
        **title,
    )
    return made
