"""What was found: one page with a table and a plot a claim, written from the results alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from experiments.runs import Result
from vitcore.evals import style
from vitcore.evals.statistics import Estimate

Results = Mapping[str, Result]


SCORE = "top-1 on the test photographs"


@dataclass(frozen=True)
class Section:
    """A claim: what was asked, what was found, and a picture of it."""

    title: str
    text: str
    figures: dict[str, Figure]


def scores(results: Results, way: str, seeds: Sequence[int] | range) -> list[float]:
    """Top-1 of a contestant, a number a seed."""
    return [results[f"{way}-{seed}"].metrics["top1"] for seed in seeds]


def percent(value: Estimate) -> str:
    """``41.2 % [40.1, 42.3]``."""
    return f"{100 * value.value:.1f} % [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def points(value: Estimate) -> str:
    """A difference in percentage points: ``+3.1 [2.0, 4.2]``."""
    return f"{100 * value.value:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]"


def verdict(value: Estimate, yes: str, no: str, open_: str) -> str:
    """Which of three sentences the interval of a difference supports."""
    return yes if value.low > 0 else no if value.high < 0 else open_


def claim(module: str | None, table: str, said: str) -> str:
    """The text of a section: the claim in the words of its file, the table, and what follows from it."""
    return f"{(module or '').strip()}\n\n{table}\n\n{said}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bars(values: Mapping[str, Estimate], heading: str, axis: str, note: str) -> Figure:
    """One estimate with its interval a line."""
    made, (ax,) = style.figure(6.4, 1.0 + 0.42 * len(values))
    for place, (colour, value) in enumerate(zip(style.CYCLE, values.values(), strict=False)):
        ax.plot([value.low, value.high], [place, place], color=colour, linewidth=2, alpha=0.55, solid_capstyle="round")
        ax.plot(value.value, place, "o", markersize=6.5, color=colour, markeredgecolor="white")
    ax.set_yticks(range(len(values)), list(values))
    ax.set_ylim(len(values) - 0.4, -0.6)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    style.grid(ax, "x")
    style.labels(ax, axis)
    style.title(ax, heading, note)
    return made


def curves(sizes: Sequence[int], lines: Mapping[str, Sequence[Estimate]]) -> Figure:
    """Accuracy over the number of photographs, with a band."""
    made, (ax,) = style.figure(5.6, 3.6)
    for colour, (name, values) in zip((style.VERMILION, style.BLUE), lines.items(), strict=True):
        ax.fill_between(sizes, [v.low for v in values], [v.high for v in values], color=colour, alpha=0.15, linewidth=0)
        ax.plot(sizes, [v.value for v in values], "o-", color=colour, linewidth=1.8, markersize=4.5, label=name)
    ax.set_xscale("log")
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    style.grid(ax, "both")
    style.labels(ax, "photographs to learn from", SCORE)
    seeds = next(iter(lines.values()))[0].n
    style.title(
        ax, "CNN and ViT as the data grow", f"equal numbers of weights and steps; mean of {seeds} seeds, 95 % intervals"
    )
    style.legend(ax)
    return made


def write(sections: Sequence[Section], folder: Path, head: str) -> Path:
    """Write the page and its pictures; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [head]
    for section in sections:
        parts.append(f"## {section.title}\n\n{section.text}")
        for name, figure in section.figures.items():
            (folder / f"reproduce-{name}.png").write_bytes(style.to_png(figure))
            parts.append(f"![{section.title}](reproduce-{name}.png)")
    page = folder / "reproduce.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page
