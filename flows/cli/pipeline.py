"""`vit pipeline`: the whole story, from photographs to champion."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from flows.cli import console, results
from flows.cli.arguments import parse
from flows.cli.fields import changes, mirror
from flows.cli.session import Session
from vitcore.errors import RequestError
from vitcore.recipe import Compute, apply_overrides
from vitcore.recipes import CATALOGUE

if TYPE_CHECKING:
    from tasks.compare import Summary
    from tasks.settings import Settings
    from vitcore.evals.statistics import Estimate

STAGES = ("teacher", "vit", "deit", "finetune")


@dataclass(frozen=True)
class Options:
    """The arguments of the verb that are not fields of `Compute`."""

    family: Annotated[Positional[str], arg(metavar="FAMILY")]
    """Family of the recipes to run, such as elpv: its teacher, vit, deit and finetune."""
    source: str | None = None
    """Folder or table of photographs; default: those of the package elpv-dataset."""
    data: str | None = None
    """URL the dataset is written to; default: under ./.vit."""
    fresh: bool = False
    """Repeat every stage, done or not."""
    dry_run: bool = False
    """Say which stages would run and why, and run nothing."""
    json: bool = False
    """Print the summary as JSON."""


def run(argv: list[str], session: Session) -> int:
    """Run the verb; returns the exit code."""
    fields = mirror(Compute())
    request: Any = dataclasses.make_dataclass(
        "Pipeline",
        [
            ("options", Annotated[Options, arg(name="")]),
            ("compute", fields, dataclasses.field(default=fields())),
        ],
    )
    given = parse(
        request,
        argv,
        verb="pipeline",
        about="The whole story: ingest, a teacher, a ViT and a DeiT that follows the teacher, fine-tuning at a higher "
        "resolution, evaluation with confidence intervals, promotion. Stages that are done are not run again.",
        examples=("vit pipeline elpv", "vit pipeline elpv --dry-run"),
    )
    _require_family(given.options.family)
    settings = session.start()
    from flows.pipeline import pipeline, plan

    options: Options = given.options
    arguments: dict[str, Any] = {
        "family": options.family,
        "source": options.source,
        "data": options.data,
        "compute": apply_overrides(Compute(), changes(Compute(), given.compute)),
        "fresh": options.fresh,
    }
    if options.dry_run:
        return results.show_plan(plan(**arguments), json=options.json)
    summary = pipeline(**arguments)
    if options.json:
        console.as_json(results.plain(summary))
    else:
        _show(summary, settings)
    return 0


def _require_family(family: str) -> None:
    missing = [f"{family}_{stage}" for stage in STAGES if f"{family}_{stage}" not in CATALOGUE]
    if missing:
        known = [name.removesuffix("_teacher") for name in CATALOGUE if name.endswith("_teacher")]
        raise RequestError(f"there is no family {family!r} of recipes for the pipeline; known: {', '.join(known)}")


def _show(summary: Summary, settings: Settings) -> None:
    """The table the story ends with, what distillation bought, and where to look further."""
    metrics = {"top1": "top-1", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}
    shown = [name for name in metrics if any(name in line.report.metrics for line in summary.lines)]
    console.table(
        ("model", *(metrics[name] for name in shown), "parameters", "images/s"),
        [
            (
                line.label,
                *(_estimate(line.report.metrics.get(name)) for name in shown),
                line.report.parameters,
                None if line.report.images_per_s is None else round(line.report.images_per_s),
            )
            for line in summary.lines
        ],
        title=f"{summary.name}: {summary.lines[0].report.samples:,} test photographs, 95 % intervals",
    )
    console.write(f"Distillation bought {_estimate(summary.gain)} balanced accuracy (DeiT minus the same ViT, paired).")
    for reason in summary.reasons:
        console.write(reason)
    (console.done if summary.promoted else console.say)(f"champion: {summary.champion or 'none'}")
    console.heading("\nLook at it")
    for command in _interfaces(settings):
        console.write(f"  {command}")


def _estimate(estimate: Estimate | None) -> str | None:
    return None if estimate is None else f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _interfaces(settings: Settings) -> list[str]:
    """What opens the interfaces of MLflow and Prefect on what just ran; a server's own is named by its address."""
    local = settings.tracking_uri.startswith("sqlite:")
    programs = Path(sys.executable).parent
    mlflow = f"{programs / 'mlflow'} ui --backend-store-uri {settings.tracking_uri}"
    mlflow = mlflow if local else f"MLflow: {settings.tracking_uri}"
    prefect = f"PREFECT_HOME={settings.home / 'prefect'} {programs / 'prefect'} server start"
    return [mlflow, prefect if settings.api is None else f"Prefect: {settings.api.removesuffix('/api')}"]
