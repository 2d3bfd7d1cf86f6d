"""`vit check`: is a dataset fit to train on? Repairs it, removes what no version needs, tries a training's layout."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from flows.cli import console, results
from flows.cli.arguments import parse
from flows.cli.fields import changes, mirror
from flows.cli.session import Session
from vitcore.errors import RequestError
from vitcore.recipe import Compute, apply_overrides
from vitcore.recipe.compute import workers_on_cpus
from vitcore.recipes import find

if TYPE_CHECKING:
    from vitcore.data.maintenance.findings import Finding
    from vitcore.data.maintenance.garbage import Garbage

_SAMPLE, _GRACE_H = "2%", 24.0
_LISTED = 1000  # files that a dry run names


@dataclass(frozen=True)
class Arguments:
    """The arguments of the verb."""

    url: Annotated[Positional[str], arg(metavar="URL")]
    """URL of the dataset."""
    sample: str = _SAMPLE
    """Share of the photographs to decode, such as 2%; or full."""
    versions: Literal["current", "all"] = "current"
    """Look at the current version, or at what older ones list too (a shard that several list is read once)."""
    repair: bool = False
    """Make lost indexes again from their tars, and publish a version without what is damaged; older versions stay."""
    gc: bool = False
    """Remove what no version needs, instead of checking. Not while an ingest runs that goes on from a killed one."""
    keep: int | None = None
    """With --gc: versions that are kept, the current one and its nearest ancestors; default: all."""
    keep_days: float | None = None
    """With --gc: keep the versions published in this many days, and the current one."""
    grace_hours: float = _GRACE_H
    """With --gc: leave alone what was changed in this many hours; an ingest may be at work on it."""
    recipe: Annotated[str | None, arg(name="for", metavar="RECIPE")] = None
    """Try the layout of a training instead of reading tars: lanes, workers, cache, sizes. Takes the recipe's fields and
    --compute.* as `vit pretrain` does."""
    dry_run: bool = False
    """With --repair or --gc: say what would be done, and do nothing."""
    json: bool = False
    """Print JSON."""


def run(argv: list[str], session: Session) -> int:
    """Run the verb; returns the exit code: 1 when the dataset is unfit."""
    name = _recipe_name(argv)
    given = parse(
        Arguments if name is None else _with_recipe(name),
        argv,
        verb="check",
        about="Verify a dataset: every shard's checksum and index, a sample of its photographs, the balance of its "
        "classes, and photographs that stand in two splits. Exit code 1: unfit to train on.",
        examples=(
            "vit check data/birds",
            "vit check s3://bucket/birds --sample full --versions all",
            "vit check data/birds --repair --dry-run",
            "vit check data/birds --gc --keep 3",
            "vit check s3://bucket/birds --for vit_s16 --compute.workers 8 --train.batch-size 2048",
        ),
    )
    options: Arguments = given if name is None else given.options
    _refuse_idle_options(options)
    share = _share(options.sample)
    session.start()
    if name is not None:
        return _layout(options, name, given)
    if options.gc:
        return _collect(options)
    return _repair(options, share) if options.repair else _check(options, share)


def _check(options: Arguments, share: float | Literal["full"]) -> int:
    from tasks.progress import Progress
    from vitcore.data.maintenance.check import check

    with Progress().track("checking", unit="shards") as track:
        findings = check(options.url, share, versions=options.versions, progress=track.update)
    return _tell(options, findings, {})


def _repair(options: Arguments, share: float | Literal["full"]) -> int:
    from tasks.progress import Progress
    from vitcore.data.maintenance.repair import repair

    with Progress().track("checking", unit="shards") as track:
        outcome = repair(options.url, share, dry_run=options.dry_run, progress=track.update)
    if not options.json:
        for action in outcome.actions:
            console.write(f"{'would be done' if options.dry_run else 'repaired'}: {action}")
        if outcome.published:
            console.done(f"published version {outcome.published.digest} of {outcome.published.url}")
        elif not outcome.actions:
            console.say("nothing is damaged that could be repaired")
    found = {"actions": list(outcome.actions), "published": results.plain(outcome.published)}
    return _tell(options, outcome.findings, found)


def _tell(options: Arguments, findings: Sequence[Finding], more: dict[str, Any]) -> int:
    from vitcore.data.maintenance.findings import fit

    good = fit(findings)
    if options.json:
        console.as_json({"fit": good, "findings": results.plain(list(findings)), **more})
        return 0 if good else 1
    for finding in findings:
        console.write(f"{finding.severity}: {finding.text}")
    what = f"{options.url} is {{}} to train {options.recipe or 'on'}" + (" on" if options.recipe else "")
    if good:
        console.done(what.format("fit"))
    else:
        console.fail(f"{what.format('unfit')}; see above")
    return 0 if good else 1


def _layout(options: Arguments, name: str, given: Any) -> int:
    from vitcore.data.dataset.manifest import Dataset
    from vitcore.data.maintenance.layout import check_layout

    recipe = find(name)
    recipe = apply_overrides(recipe, changes(recipe, given.recipe))
    try:
        compute = apply_overrides(Compute(), changes(Compute(), given.compute))
    except RequestError as error:
        raise RequestError(f"compute.{error}") from None
    workers = compute.workers or _usual_workers(compute)
    return _tell(
        options, check_layout(Dataset.open(options.url), recipe, compute, workers=workers), {"workers": workers}
    )


def _collect(options: Arguments) -> int:
    from vitcore.data.maintenance.garbage import find_garbage, remove

    found = find_garbage(
        options.url, keep=options.keep, keep_days=options.keep_days, grace_s=options.grace_hours * 3600
    )
    if not options.dry_run:
        remove(found)
    if options.json:
        console.as_json({"removed": not options.dry_run, **results.plain(found), "bytes": found.bytes})
    else:
        _show(found, options)
    return 0


def _show(found: Garbage, options: Arguments) -> None:
    from vitcore.data.maintenance.findings import in_bytes

    verb = "would be removed" if options.dry_run else "removed"
    if options.dry_run and found.trash:
        shown = found.trash[:_LISTED]
        console.table(("file", "what", "size"), [(one.path, one.kind, in_bytes(one.bytes)) for one in shown])
        if len(found.trash) > len(shown):
            console.write(f"… and {len(found.trash) - len(shown)} more; --json lists all of them")
    elif found.trash:
        counts, sizes = Counter[str](), Counter[str]()
        for one in found.trash:
            counts[one.kind] += 1
            sizes[one.kind] += one.bytes
        console.table(("what", "files", "size"), [(kind, counts[kind], in_bytes(sizes[kind])) for kind in counts])
    for version in found.versions:
        console.write(f"{verb}: version {version}; a training that pinned it can no longer be continued")
    kept = f"{len(found.kept)} versions of {found.url} are kept"
    console.done(f"{len(found.trash)} files of {in_bytes(found.bytes)} {verb}; {kept}")


def _recipe_name(argv: Sequence[str]) -> str | None:
    """What follows ``--for``; the recipe's fields are options then, so it has to be known before they are read."""
    for place, word in enumerate(argv):
        if word.startswith("--for="):
            return word.removeprefix("--for=")
        if word == "--for" and place + 1 < len(argv) and not argv[place + 1].startswith("-"):
            return argv[place + 1]
    return None


def _with_recipe(name: str) -> Any:
    recipe, compute = mirror(find(name), hide=frozenset({"name"})), mirror(Compute())
    return dataclasses.make_dataclass(
        "Layout",
        [
            ("options", Annotated[Arguments, arg(name="")]),
            ("recipe", Annotated[recipe, arg(name="")], dataclasses.field(default=recipe())),
            ("compute", compute, dataclasses.field(default=compute())),
        ],
    )


def _refuse_idle_options(options: Arguments) -> None:
    """Options that would do nothing beside the others are a misunderstanding."""
    modes = {"--repair": options.repair, "--gc": options.gc, "--for": options.recipe is not None}
    chosen = [name for name, asked in modes.items() if asked]
    if len(chosen) > 1:
        raise RequestError(f"{' and '.join(chosen)} are different things; ask for one after the other")
    only_gc = {"--keep": options.keep, "--keep-days": options.keep_days}
    only_gc["--grace-hours"] = options.grace_hours if options.grace_hours != _GRACE_H else None
    for name, value in only_gc.items():
        if value is not None and not options.gc:
            raise RequestError(f"{name} says what --gc keeps; give --gc too")
        if value is not None and value < 0:
            raise RequestError(f"{name} takes a number from 0, not {value:g}")
    if options.dry_run and not (options.repair or options.gc):
        raise RequestError("a check changes nothing; --dry-run is for --repair and --gc")
    if options.versions != "current" and chosen:
        raise RequestError(f"--versions is for a check, not for {chosen[0]}")
    if options.sample != _SAMPLE and (options.gc or options.recipe):
        raise RequestError(f"{chosen[0]} decodes no photograph, so --sample has no meaning for it")


def _usual_workers(compute: Compute) -> int:
    """How many workers a training takes where none are asked for: on this machine, as nothing else is known here."""
    import torch

    cards = 0 if compute.accelerator == "cpu" else torch.cuda.device_count()
    return cards or workers_on_cpus(os.cpu_count() or 1)


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
