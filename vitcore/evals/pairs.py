"""A contact sheet of pairs of photographs: what an audit calls copies, side by side, for a person to judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vitcore.data.dataset.manifest import Dataset
from vitcore.data.reading.decode import BadSampleError, decode
from vitcore.data.reading.reader import Reader
from vitcore.evals import style

MOST = 24
"""Pairs on a sheet."""
_COLUMNS = 4
_CELL = 2.2, 1.6  # inches of a pair: width, height
_SECOND = 1.04  # where the second photograph of a pair begins; both lie in unit squares
_SIDE = 256  # pixels of the longer side, at most, as drawn
_KEY = 19  # characters of a key that fit below a photograph


def pairs_figure(left: Dataset, right: Dataset, pairs: pa.Table, title: str, most: int = MOST) -> Figure:
    """Up to `most` pairs, evenly drawn from the nearest to the farthest, each with its keys and how near it is.

    Args:
        left: dataset of the first photograph of each pair.
        right: dataset of the second one.
        pairs: of the schema `vitcore.data.audit.audit.PAIRS`, nearest first.
        title: above the sheet.
        most: pairs to show.
    """
    shown = np.unique(np.linspace(0, len(pairs) - 1, min(most, len(pairs))).astype(np.int64))
    rows = pairs.take(shown).to_pylist()
    ones = _photographs(left, [(row["split"], row["row"]) for row in rows])
    others = _photographs(right, [(row["other_split"], row["other_row"]) for row in rows])
    columns = min(_COLUMNS, max(1, len(rows)))
    lines = max(1, -(-len(rows) // columns))
    size = _CELL[0] * columns + 0.2, _CELL[1] * lines + 0.5
    made = Figure(figsize=size, dpi=style.DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(made)
    made.suptitle(title, x=0.01, ha="left", fontsize=style.TITLE, fontweight="bold", fontfamily=style.FONT)
    axes = made.subplots(lines, columns, squeeze=False)
    for panel in axes.flat:
        panel.set_axis_off()
    for panel, row, one, other in zip(axes.flat, rows, ones, others, strict=False):
        _draw(panel, 0.0, one, row["split"], row["key"])
        _draw(panel, _SECOND, other, row["other_split"], row["other_key"])
        panel.set(xlim=(0, _SECOND + 1), ylim=(0, 1), aspect="equal")
        panel.set_title(_nearness(row), loc="left", fontsize=style.SMALL, color=style.INK, fontfamily=style.FONT)
    return made


def _nearness(row: dict[str, Any]) -> str:
    similarity = row["similarity"]
    bits = f"{row['distance']} bit{'' if row['distance'] == 1 else 's'}"
    return bits if similarity is None else f"{bits}, correlation {similarity:.3f}"


def _photographs(dataset: Dataset, wanted: list[tuple[str, int]]) -> list[NDArray[np.uint8] | None]:
    """Pixels [H, W, 3] of samples by split and row; None for one that cannot be read."""
    found: list[NDArray[np.uint8] | None] = [None] * len(wanted)
    for split in {split for split, _ in wanted}:
        with Reader(dataset, split) as reader:
            for place, (of, row) in enumerate(wanted):
                if of == split:
                    found[place] = _pixels(reader, row)
    return found


def _pixels(reader: Reader, row: int) -> NDArray[np.uint8] | None:
    try:
        pixels: NDArray[np.uint8] = decode(reader.read(row)).permute(1, 2, 0).numpy()
    except BadSampleError:
        return None
    step = max(1, max(pixels.shape) // _SIDE)
    return pixels[::step, ::step]


def _draw(panel: Axes, left: float, pixels: NDArray[np.uint8] | None, split: str, key: str) -> None:
    """A photograph in the unit square that begins at `left`, and its name below."""
    text: dict[str, Any] = {"ha": "center", "fontfamily": style.FONT}
    if pixels is None:
        panel.text(left + 0.5, 0.5, "cannot be read", va="center", fontsize=style.SMALL, color=style.VERMILION, **text)
    else:
        height, width, _ = pixels.shape
        wide, high = width / max(height, width), height / max(height, width)
        x, y = left + (1 - wide) / 2, (1 - high) / 2
        panel.imshow(pixels, extent=(x, x + wide, y, y + high))
    name = key if len(key) <= _KEY else key[: _KEY - 1] + "…"
    panel.text(left + 0.5, -0.04, f"{split}\n{name}", va="top", fontsize=5.5, color=style.MUTED, **text)
