"""`vit evaluate`: measure a model on held-out data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from flows.cli import console, results
from flows.cli.arguments import parse
from flows.cli.session import Session
from vitcore.errors import RequestError

if TYPE_CHECKING:
    from vitcore.evals.report import Report


@dataclass(frozen=True)
class Arguments:
    """The arguments of the verb."""

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """The model: models:/NAME/VERSION, models:/NAME@ALIAS, timm:NAME, torchvision:NAME, or a model's folder."""
    data: tuple[str, ...]
    """URLs of the datasets to measure on."""
    split: str = "test"
    """Split to measure on."""
    fresh: bool = False
    """Measure again even if the report exists."""
    dry_run: bool = False
    """Say what would run and why, and run nothing."""
    json: bool = False
    """Print the reports as JSON."""


def run(argv: list[str], session: Session) -> int:
    """Run the verb; returns the exit code."""
    given = parse(
        Arguments,
        argv,
        verb="evaluate",
        about="Measure a model on held-out photographs: accuracy, balanced accuracy, AUROC and calibration with 95 % "
        "confidence intervals, per-class accuracy, confusion matrix, attention maps, throughput.",
        examples=("vit evaluate models:/birds@champion --data data/birds data/birds-2026 --split test",),
    )
    if not given.data:
        raise RequestError("name the photographs to measure on: vit evaluate MODEL --data URL")
    session.start()
    from flows.evaluate import evaluate, plan

    arguments: dict[str, Any] = {
        "model": given.model,
        "data": list(given.data),
        "split": given.split,
        "fresh": given.fresh,
    }
    stages = plan(**arguments)  # a wrong request is answered here, before any server starts
    if given.dry_run:
        return results.show_plan(stages, json=given.json)
    reports = evaluate(**arguments)
    if given.json:
        console.as_json(results.plain(reports))
        return 0
    for report in reports:
        show_report(report)
    return 0


def show_report(report: Report) -> None:
    """Print a report's metrics and per-class accuracies."""
    console.heading(f"{report.model} on {report.dataset}, split {report.split}: {report.samples:,} photographs")
    interval = f"{report.level:.0%} interval"
    console.table(
        ("metric", "value", interval),
        [
            (name, f"{value.value:.3f}", f"[{value.low:.3f}, {value.high:.3f}]")
            for name, value in report.metrics.items()
        ],
    )
    console.table(
        ("class", "photographs", "accuracy", interval, "predicted"),
        [
            (row.name, of.n, f"{of.value:.3f}", f"[{of.low:.3f}, {of.high:.3f}]", row.predicted)
            for row in report.per_class
            for of in (row.accuracy,)
        ],
    )
    console.fields({"parameters": report.parameters, "images/s": report.images_per_s, "skipped": len(report.skipped)})
    for remark in report.remarks:
        console.write(remark)
