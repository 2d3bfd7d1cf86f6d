"""`vit ingest`: a raw corpus becomes a dataset version."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional, arg

from flows.cli import results
from flows.cli.arguments import parse
from flows.cli.fields import changes, mirror
from flows.cli.session import Session
from vitcore.recipe import apply_overrides


@dataclass(frozen=True)
class Options:
    """The arguments that are not fields of `IngestConfig`."""

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """Folder of class folders or photographs; CSV, Parquet or JSONL table; Hugging Face folder; folder of tars."""
    url: Annotated[Positional[str], arg(metavar="URL")]
    """Where the dataset is written: a folder here or in an object store (s3://bucket/birds)."""
    append: bool = False
    """Keep what is there and the source does not name; otherwise the dataset becomes what the source is."""
    fresh: bool = False
    """Read and write everything again, even if this version exists."""
    dry_run: bool = False
    """Say what would be written and why, and write nothing."""
    json: bool = False
    """Print the reference as JSON."""


def run(argv: list[str], session: Session) -> int:
    """Run the verb; returns the exit code."""
    from vitcore.data.ingest_config import IngestConfig

    config = IngestConfig()
    fields = mirror(config)
    request: Any = dataclasses.make_dataclass(
        "Ingest",
        [
            ("options", Annotated[Options, arg(name="")]),
            ("config", Annotated[fields, arg(name="")], dataclasses.field(default=fields())),
        ],
    )
    given = parse(
        request,
        argv,
        verb="ingest",
        about="Turn raw photographs into a dataset: WebDataset tars with an index, a manifest and splits that never "
        "change sides. Given again, it writes what is new, edits the labels that changed and leaves out what is gone, "
        "as a new version; older versions stay readable.",
        examples=(
            "vit ingest photos/ data/birds",
            "vit ingest photos.csv s3://bucket/birds --table.label species --resize none",
            "vit ingest tonight/ data/birds --append",
            "vit ingest laion-tars/ laion-tars/            (adopted as they stand)",
        ),
    )
    options: Options = given.options
    edited = apply_overrides(config, changes(config, given.config))
    session.start()
    from flows.ingest import ingest, plan

    arguments: dict[str, Any] = {
        "source": options.source,
        "url": options.url,
        "config": edited,
        "append": options.append,
        "fresh": options.fresh,
    }
    if options.dry_run:
        return results.show_plan(plan(**arguments), json=options.json)
    return results.show(ingest(**arguments), json=options.json)
