"""`vit edit`: correct what a dataset says of its photographs, or withdraw some."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from flows.cli import results
from flows.cli.arguments import parse
from flows.cli.session import Session


@dataclass(frozen=True)
class Arguments:
    """The arguments of the verb."""

    url: Annotated[Positional[str], arg(metavar="URL")]
    """URL of the dataset."""
    table: Annotated[Positional[str], arg(metavar="TABLE")]
    """CSV, TSV, Parquet or JSONL with a column key or source, and what shall be: label, caption(s), split or group."""
    delete: bool = False
    """Leave the named photographs out instead."""
    json: bool = False
    """Print the reference as JSON."""


def run(argv: list[str], session: Session) -> int:
    """Run the verb; returns the exit code."""
    given = parse(
        Arguments,
        argv,
        verb="edit",
        about="Publish a version in which the photographs that a table names have another label, other captions or "
        "another split, or are left out. No tar is written: labels and deletions live in the version, and older "
        "versions stay as they were. What is left out stays out when its corpus is ingested again; labels and captions "
        "become again what the corpus says.",
        examples=(
            "vit edit data/birds corrections.csv           (columns source,label)",
            "vit edit s3://bucket/birds withdrawn.csv --delete",
        ),
    )
    session.start()
    from flows.ingest import edit

    return results.show(edit(given.url, given.table, given.delete), json=given.json)
