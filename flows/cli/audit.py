"""`vit audit`: copies within a dataset, and photographs it is evaluated on that are known from training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from flows.cli import console, results
from flows.cli.arguments import parse
from flows.cli.session import Session
from vitcore.errors import RequestError, WorkError

if TYPE_CHECKING:
    import pyarrow as pa

    from vitcore.data.audit.audit import AuditConfig, Duplicates
    from vitcore.data.audit.overlap import Overlap
    from vitcore.data.dataset.manifest import Dataset

_LISTED = 8  # pairs in a table


@dataclass(frozen=True)
class Arguments:
    """The arguments of the verb."""

    url: Annotated[Positional[str], arg(metavar="URL")]
    """URL of the dataset."""
    against: str | None = None
    """URL of the dataset that is trained on, where it is another one. Then copies within URL are not looked for."""
    split: tuple[str, ...] = ()
    """Splits that are evaluated on; default: all but train, or all of a dataset that has nothing else."""
    trained: tuple[str, ...] = ("train",)
    """Splits that are trained on."""
    radius: int = 4
    """Bits, of 64, by which the perceptual hashes of near copies may differ, from 0 to 8; 0: equal ones only."""
    similarity: float = 0.9
    """Least correlation of two photographs' grey levels (32 × 32 pixels) that makes them near copies."""
    confirm: bool = True
    """Trust the perceptual hashes and decode nothing: faster, but pictures that are alike by chance count as copies."""
    figure: str | None = None
    """Draw near copies side by side into this PNG."""
    redundant: str | None = None
    """Write a CSV of the photographs of URL to leave out, so that no copies are left: vit edit URL FILE --delete."""
    json: bool = False
    """Print what was found as JSON."""


def run(argv: list[str], session: Session) -> int:
    """Run the verb; returns the exit code: 1 when photographs that are evaluated on are known from training."""
    given = parse(
        Arguments,
        argv,
        verb="audit",
        about="Find photographs that are there twice: with the same content, or as near copies (resized, recompressed, "
        "brightened, greyed; not turned, mirrored or cropped by more than a few percent). First among all photographs "
        "of a dataset; then those it is evaluated on that it is trained on too, which makes scores too good: they are "
        "kept with the version, and evaluations report them. Exit code 1: there are such photographs.",
        examples=(
            "vit audit data/birds --figure pairs.png",
            "vit audit data/birds --redundant copies.csv      (then: vit edit data/birds copies.csv --delete)",
            "vit audit data/birds-2026 --against s3://bucket/everything --split test",
        ),
    )
    session.start()
    from pydantic import ValidationError

    from vitcore.data.audit.audit import AuditConfig
    from vitcore.data.dataset.manifest import Dataset

    try:
        config = AuditConfig(radius=given.radius, confirm=given.confirm, similarity=given.similarity)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise RequestError(f"--{wrong['loc'][0]}: {wrong['msg']}") from None
    dataset = Dataset.open(given.url)
    training = dataset if given.against is None else Dataset.open(given.against)
    compared = [(split, training) for split in _evaluated(dataset, training, given)]
    copies = _duplicates(dataset, config) if training is dataset else None
    overlaps = [_leakage(dataset, split, other, given.trained, config) for split, other in compared]
    if given.figure:
        _draw(given.figure, dataset, training, copies, overlaps)
    if given.redundant:
        _write_redundant(given.redundant, dataset, config, overlaps, alone=copies is not None)
    leaks = any(overlap.summary.copies for overlap in overlaps)
    if given.json:
        console.as_json(_as_json(copies, overlaps))
    else:
        _show(given, copies, overlaps)
    return 1 if leaks else 0


def _evaluated(dataset: Dataset, training: Dataset, given: Arguments) -> list[str]:
    """Splits to compare with the training photographs; none where the dataset has no others."""
    for split in given.split:
        dataset.split(split)
    if training is not dataset:
        others = [split for split in dataset.manifest.splits if split not in given.trained]
        chosen = list(given.split) or others or list(dataset.manifest.splits)
    else:
        chosen = list(given.split) or [split for split in dataset.manifest.splits if split not in given.trained]
    for split in given.trained if chosen else ():
        training.split(split)
    return chosen


def _duplicates(dataset: Dataset, config: AuditConfig) -> Duplicates:
    from tasks.progress import Progress
    from vitcore.data.audit.audit import duplicates

    with Progress().track("looking for copies", unit="passes") as track:
        return duplicates(dataset, config, progress=track.update)


def _leakage(dataset: Dataset, split: str, training: Dataset, trained: tuple[str, ...], config: AuditConfig) -> Overlap:
    from tasks.progress import Progress
    from vitcore.data.audit.overlap import keep, leakage

    with Progress().track(f"comparing {split} with {', '.join(trained)}", unit="passes") as track:
        overlap = leakage(dataset, split, training, trained, config, progress=track.update)
    try:
        keep(overlap, dataset)
    except WorkError as error:
        console.say(f"{error}; evaluations will look for copies anew")
    return overlap


def _draw(path: str, dataset: Dataset, training: Dataset, copies: Duplicates | None, overlaps: list[Overlap]) -> None:
    """A contact sheet of leaked photographs; of copies within the dataset where nothing leaked."""
    import pyarrow as pa

    from vitcore import storage
    from vitcore.data.audit.audit import table
    from vitcore.evals import style
    from vitcore.evals.pairs import pairs_figure

    leaked = _nearest_first(pa.concat_tables([overlap.copies for overlap in overlaps])) if overlaps else None
    if leaked is not None and len(leaked):
        title = f"{len(leaked):,} photographs to evaluate on (left) that are known from training (right)"
        figure = pairs_figure(dataset, training, leaked, title)
    elif copies is not None and len(copies.nearest.left):
        pairs = table(copies.photographs, copies.nearest)
        figure = pairs_figure(dataset, dataset, pairs, "Near copies, from the nearest to the farthest")
    else:
        console.say(f"no near copies, so there is nothing to draw: {path} is not written")
        return
    storage.write(path, style.to_png(figure))
    console.done(f"drew {path}")


def _write_redundant(path: str, dataset: Dataset, config: AuditConfig, overlaps: list[Overlap], *, alone: bool) -> None:
    """What to leave out: of a dataset by itself all copies but one, of one against another the known photographs."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv

    from vitcore import storage
    from vitcore.data.audit.dedup import COPY, NEAR_COPY, copies
    from vitcore.data.audit.fingerprints import Photographs

    if alone:
        found = copies(dataset, config)
        rows = np.flatnonzero(~found.keep)
        photographs = Photographs.of([(dataset, split) for split in dataset.manifest.splits])
        names = photographs.keys(found.original[rows])
        kinds = found.same[rows].tolist()
        keys = photographs.keys(rows)
    else:
        known = pa.concat_tables([overlap.copies for overlap in overlaps])
        keys, names = known.column("key").to_pylist(), known.column("other_key").to_pylist()
        kinds = known.column("exact").to_pylist()
    reasons = [f"{COPY if same else NEAR_COPY} {name}" for same, name in zip(kinds, names, strict=True)]
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(
        pa.table({"key": pa.array(keys, pa.string()), "reason": pa.array(reasons, pa.string())}), sink
    )
    storage.write(path, bytes(sink.getvalue()))
    console.done(f"listed {len(keys):,} photographs to leave out in {path}")


def _show(given: Arguments, copies: Duplicates | None, overlaps: list[Overlap]) -> None:
    if copies is not None:
        _show_copies(given.url, copies)
    for overlap in overlaps:
        _show_overlap(given, overlap)
    known = sum(overlap.summary.copies for overlap in overlaps)
    if known:
        console.fail(f"{known:,} photographs to evaluate on are known from training, so scores on them are too good")
    elif overlaps:
        console.done("no photograph to evaluate on is known from training")


def _show_copies(url: str, copies: Duplicates) -> None:
    count, sizes = len(copies.groups), copies.sizes
    console.heading(f"copies within {url}: {count:,} photographs")
    console.table(
        ("kind", "photographs", "share"),
        [
            (kind, found, f"{found / max(1, count):.2%}")
            for kind, found in (("exact", copies.exact), ("near", copies.near))
        ],
    )
    if len(sizes):
        linked = "members of one may be linked through others"
        console.write(f"groups: {len(sizes):,}, the largest of {sizes[0]:,}; {linked}")
    _show_left_out(copies.left_out)


def _show_overlap(given: Arguments, overlap: Overlap) -> None:
    found = overlap.summary
    source = f"{', '.join(found.training_splits)} of {given.against or given.url}"
    console.heading(f"{found.split} against {source}: {found.samples:,} photographs")
    kinds = (("exact", found.exact), ("near", found.near))
    console.table(
        ("known from training", "photographs", "share"),
        [(kind, number, f"{number / max(1, found.samples):.2%}") for kind, number in kinds],
    )
    if found.copies:
        pairs = _nearest_first(overlap.copies).slice(0, _LISTED).to_pylist()
        console.table(
            (found.split, "is a copy of", "in", "bits", "correlation"),
            [
                (pair["key"], pair["other_key"], pair["other_split"], pair["distance"], _number(pair["similarity"]))
                for pair in pairs
            ],
        )
    _show_left_out(found.left_out)


def _show_left_out(count: int) -> None:
    if count:
        why = "they have no perceptual hash, or one that too many share"
        console.write(f"{count:,} photographs were compared by content alone: {why}")


def _number(similarity: float | None) -> str:
    return "" if similarity is None else f"{similarity:.3f}"


def _nearest_first(pairs: pa.Table) -> pa.Table:
    order = [("distance", "ascending"), ("similarity", "descending"), ("row", "ascending")]
    return pairs.sort_by(order)


def _as_json(copies: Duplicates | None, overlaps: list[Overlap]) -> dict[str, Any]:
    from vitcore.data.audit.audit import table

    found: dict[str, Any] = {"leaks": any(overlap.summary.copies for overlap in overlaps)}
    if copies is not None:
        found["copies"] = {
            "photographs": len(copies.groups),
            "exact": copies.exact,
            "near": copies.near,
            "groups": copies.sizes.tolist(),
            "left_out": copies.left_out,
            "nearest": table(copies.photographs, copies.nearest).to_pylist(),
        }
    found["leakage"] = [
        results.plain(overlap.summary) | {"copies": _nearest_first(overlap.copies).to_pylist()} for overlap in overlaps
    ]
    return found
