"""The house style of every figure: one font, few colours that colour-blind readers can tell apart, no decoration.

Figures are made with matplotlib's object API on the Agg canvas: nothing here touches pyplot or its global settings,
so that threads and notebooks do not disturb each other.
"""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

DPI = 160
FONT = "DejaVu Sans"  # comes with matplotlib: the same picture on every machine
TITLE, TEXT, SMALL = 10.5, 8.5, 7.5

INK = "#1f2430"
MUTED = "#667085"
RULE = "#d0d5dd"
GRID = "#eceef2"
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#a8528a", "#e69f00", "#56b4e9"
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
"""Series colours, after Okabe and Ito."""
SHADES = LinearSegmentedColormap.from_list("vitcore", ["#ffffff", "#d3e5f2", "#6aaed6", BLUE, "#08406b"])
"""From none to all."""


def figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of `width` × `height` inches with one row of styled axes."""
    made = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(made)
    made.get_layout_engine().set(w_pad=0.09, h_pad=0.09, wspace=0.05)  # type: ignore[union-attr, call-arg]
    axes = [made.add_subplot(1, columns, column + 1) for column in range(columns)]
    for ax in axes:
        _plain(ax)
    return made, axes


def _plain(ax: Axes) -> None:
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(RULE)
        spine.set_linewidth(0.8)
    ax.tick_params(colors=MUTED, labelcolor=INK, labelsize=TEXT, length=3, width=0.8, labelfontfamily=FONT)
    ax.set_axisbelow(True)


def grid(ax: Axes, axis: str) -> None:
    """Faint lines across one axis (``x`` or ``y``) or ``both``."""
    ax.grid(True, axis=axis, color=GRID, linewidth=0.8)  # type: ignore[arg-type]


def title(ax: Axes, text: str, note: str = "") -> None:
    """A bold title over the left edge, with a quieter line below it."""
    ax.set_title(text, loc="left", fontsize=TITLE, fontweight="bold", color=INK, fontfamily=FONT, pad=20 if note else 8)
    if note:
        ax.annotate(
            note,
            (0, 1),
            (0, 6),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=TEXT,
            color=MUTED,
            fontfamily=FONT,
        )


def labels(ax: Axes, x: str = "", y: str = "") -> None:
    """Axis labels."""
    ax.set_xlabel(x, fontsize=TEXT, color=INK, fontfamily=FONT, labelpad=5)
    ax.set_ylabel(y, fontsize=TEXT, color=INK, fontfamily=FONT, labelpad=5)


def legend(ax: Axes) -> None:
    """A legend without a box; nothing when there is nothing to tell apart."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, labelcolor=INK, prop={"family": FONT, "size": TEXT}, handlelength=1.6)


def to_png(made: Figure) -> bytes:
    """The figure as a PNG file; equal figures give equal bytes."""
    buffer = io.BytesIO()
    made.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
