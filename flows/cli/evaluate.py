"""`vit evaluate`: measure a model on held-out data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from flows.cli import console, results
from flows.cli.arguments import parse
from flows.cli.session import Session
from vitcore.errors import RequestError

if TYPE_CHECKING:
    from vitcore.evals.report import Report
    from vitcore.evals.retrieval import RetrievalReport


@dataclass(frozen=True)
class Arguments:
    """The arguments of the verb."""

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """The model: models:/NAME/VERSION, models:/NAME@ALIAS, timm:NAME, hf:ORG/NAME, open_clip:ARCH/TAG,
    torchvision:NAME, or a model's folder."""
    data: tuple[str, ...]
    """URLs of the datasets to measure on."""
    split: str = "test"
    """Split to measure on."""
    protocol: Literal["auto", "classifier", "zero-shot", "knn", "linear", "retrieval"] = "auto"
    """How to ask the model: by its head; zero-shot, by texts made of the class names; by the 20 nearest training
    photographs or a linear classifier, on its features; by retrieval of captions. auto: what fits model and data."""
    prompts: str | None = None
    """Zero-shot: file with your own templates, one a line, with {} for the class name; default: general ones."""
    bank: str = "train"
    """knn and linear: split whose labels are known."""
    gallery: int | None = None
    """Retrieval: search the first so many photographs of the split; default: all, at most 5,000."""
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
        "confidence intervals, per-class accuracy, confusion matrix, throughput, and figures of what is inside. Models "
        "without a head are measured by their features, image and text models zero-shot or by retrieval.",
        examples=(
            "vit evaluate models:/birds@champion --data data/birds data/birds-2026 --split test",
            "vit evaluate models:/clip/3 --data data/flickr --protocol retrieval --gallery 1000",
            "vit evaluate models:/dino/1 --data data/birds --protocol linear",
        ),
    )
    if not given.data:
        raise RequestError("name the photographs to measure on: vit evaluate MODEL --data URL")
    session.start()
    from flows.evaluate import evaluate, plan

    arguments: dict[str, Any] = {
        "model": given.model,
        "data": list(given.data),
        "split": given.split,
        "protocol": given.protocol,
        "prompts": given.prompts,
        "bank": given.bank,
        "gallery": given.gallery,
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


def show_report(report: Report | RetrievalReport) -> None:
    """Print a report's metrics, and per-class accuracies or both directions of a retrieval."""
    from vitcore.evals.retrieval import RetrievalReport

    by = "" if report.protocol == "classifier" else f" by {report.protocol}"
    what = f"{report.model} on {report.dataset}, split {report.split}{by}"
    console.heading(f"{what}: {report.samples:,} photographs")
    if isinstance(report, RetrievalReport):
        _show_directions(report)
    else:
        _show_classes(report)
    console.fields({"parameters": report.parameters, "images/s": report.images_per_s, "skipped": len(report.skipped)})
    for remark in report.remarks:
        console.write(remark)


def _show_classes(report: Report) -> None:
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


def _show_directions(report: RetrievalReport) -> None:
    directions = {
        "photograph finds a caption": report.image_to_text,
        "caption finds its photograph": report.text_to_image,
    }
    console.table(
        ("direction", "queries", "among", "recall", "value", f"{report.level:.0%} interval", "chance", "median rank"),
        [
            (
                name if not place else "",
                f"{side.queries:,}" if not place else "",
                f"{side.gallery:,}" if not place else "",
                metric.replace("recall_at_", "R@"),
                f"{found.value:.3f}",
                f"[{found.low:.3f}, {found.high:.3f}]",
                f"{side.chance[metric]:.3f}",
                f"{side.median_rank:g}" if not place else "",
            )
            for name, side in directions.items()
            for place, (metric, found) in enumerate(side.recall.items())
        ],
    )
