"""`vit check`: is a dataset fit to train on?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from flows.cli import console, results
from flows.cli.arguments import parse
from flows.cli.session import Session
from vitcore.errors import RequestError


@dataclass(frozen=True)
class Arguments:
    """The arguments of the verb."""

    url: Annotated[Positional[str], arg(metavar="URL")]
    """URL of the dataset."""
    sample: str = "2%"
    """Share of the photographs to decode, such as 2%; or full."""
    json: bool = False
    """Print the findings as JSON."""


def run(argv: list[str], session: Session) -> int:
    """Run the verb; returns the exit code: 1 when the dataset is unfit."""
    given = parse(
        Arguments,
        argv,
        verb="check",
        about="Verify a dataset: every shard's checksum and index, a sample of its photographs, the balance of its "
        "classes, and photographs that stand in two splits. Exit code 1: unfit to train on.",
        examples=("vit check data/birds", "vit check s3://bucket/birds --sample full"),
    )
    share = _share(given.sample)
    session.start()
    from tasks.progress import Progress
    from vitcore.data.check import check

    with Progress().track("checking", unit="shards") as track:
        findings = check(given.url, share, progress=track.update)
    fit = all(finding.severity != "error" for finding in findings)
    if given.json:
        console.as_json({"fit": fit, "findings": results.plain(findings)})
        return 0 if fit else 1
    for finding in findings:
        console.write(f"{finding.severity}: {finding.text}")
    if fit:
        console.done(f"{given.url} is fit to train on")
    else:
        console.fail(f"{given.url} is unfit to train on; see above")
    return 0 if fit else 1


def _share(text: str) -> float | Literal["full"]:
    """A fraction from ``2%``, or ``full``."""
    if text == "full":
        return "full"
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = 0.0
    if not text.endswith("%") or not 0 < share <= 1:
        raise RequestError(f"--sample takes a share such as 2%, or full, not {text!r}")
    return share
