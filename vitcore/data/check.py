"""Is a dataset fit to train on? Everything found wrong, each in one sentence that says what to do.

Shards are read once from end to end: size, checksum, the index against the tar's own headers, and a sample of the
photographs against their hashes and a decoder. Then the index alone answers for class balance and for leakage between
splits.
"""

from __future__ import annotations

import hashlib
import io
import math
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from tarfile import TarError
from typing import IO, Any, Literal

from PIL import Image

from vitcore import storage
from vitcore.data import tar
from vitcore.data.convert import quiet
from vitcore.data.index import Index, rows_digest
from vitcore.data.manifest import Dataset, DatasetRef, Shard
from vitcore.errors import WorkError

_PIECE = 1 << 24  # bytes read at once
_THREADS = 4
_NAMED = 3  # examples named in a finding
_SKEW = 100  # largest class over smallest, above which training wants a weight

Progress = Callable[[int, int], None]
"""Told how many of how many shards are checked."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing seen."""

    severity: Literal["error", "warning", "note"]
    """`error`: unfit to train on. `warning`: fit, but look at it. `note`: good to know."""
    text: str
    """One sentence: what is wrong, and what to do."""


def check(
    at: str | DatasetRef, sample: float | Literal["full"] = 0.02, *, progress: Progress | None = None
) -> list[Finding]:
    """Verify a dataset version; an empty list, or one without errors, is fit.

    Args:
        at: URL (its current version is checked) or reference.
        sample: fraction of the photographs to decode, at least one a shard; ``"full"``: all.
        progress: told of checked shards.

    Raises:
        RequestError: the URL holds no dataset.
    """
    dataset = Dataset.open(at)
    fraction = 1.0 if sample == "full" else sample
    try:
        shards = [(split, shard) for split in dataset.manifest.splits for shard in dataset.shards(split)]
    except WorkError as error:
        return [Finding("error", str(error))]
    findings: list[Finding] = []
    with quiet(), ThreadPoolExecutor(_THREADS) as pool:
        for number, found in enumerate(pool.map(lambda one: _check_shard(dataset, one[1], fraction), shards)):
            findings += found
            if progress:
                progress(number + 1, len(shards))
    findings += _check_totals(dataset)
    if any(finding.severity == "error" for finding in findings):
        return findings  # a broken index has nothing reliable to say about classes and copies
    indexes = {split: dataset.index(split) for split in dataset.manifest.splits}
    return [*findings, *_check_classes(dataset), *_check_leaks(indexes), *_note_rejects(dataset)]


def _check_shard(dataset: Dataset, shard: Shard, fraction: float) -> list[Finding]:
    url = dataset.shard_url(shard)
    repair = f"restore it from a copy, or delete {storage.join(dataset.url, shard.name)} and ingest again"
    try:
        size = storage.size(url)
    except FileNotFoundError:
        return [Finding("error", f"the shard {url} is missing; {repair}")]
    if size != shard.bytes:
        return [Finding("error", f"the shard {url} has {size} bytes instead of {shard.bytes}; {repair}")]
    try:
        table = dataset.shard_index(shard)
    except WorkError as error:
        return [Finding("error", str(error))]
    if rows_digest(table) != shard.index_digest:
        return [Finding("error", f"the index of {url} is not the one that was published; {repair}")]
    rows: list[dict[str, Any]] = table.to_pylist()
    with _local(url) as path, path.open("rb") as file:
        checksum = hashlib.sha256()
        while piece := file.read(_PIECE):
            checksum.update(piece)
        if checksum.hexdigest() != shard.checksum:
            return [Finding("error", f"the checksum of {url} is not the published one: bytes changed; {repair}")]
        mismatch = _compare_headers(file, rows)
        if mismatch:
            return [Finding("error", f"the index of {url} does not fit its tar ({mismatch}); {repair}")]
        bad = [f"{row['key']}: {reason}" for row in _pick(rows, fraction) if (reason := _examine(file, row))]
    if bad:
        text = f"{len(bad)} photographs of {url} cannot be used ({_some(bad)}); repair the source and ingest again"
        return [Finding("error", text)]
    return []


def _compare_headers(file: IO[bytes], rows: Sequence[dict[str, Any]]) -> str | None:
    """What the first disagreement between index and tar is; None when they agree."""
    file.seek(0)
    expected = {f"{row['key']}.{row['extension']}": (row["offset"], row["size"]) for row in rows}
    companions = {"cls", "txt", "json"}
    last = ""
    seen: set[str] = set()
    try:
        for member in tar.scan(file):
            key, _, extension = member.name.partition(".")
            if key != last and key in seen:
                return f"the members of {key} are not adjacent"
            last = key
            seen.add(key)
            place = expected.pop(member.name, None)
            if place is None and extension not in companions:
                return f"{member.name} is not in the index"
            if place is not None and place != (member.offset, member.size):
                return f"{member.name} lies elsewhere"
    except TarError as error:
        return str(error)
    return f"{next(iter(expected))} is not in the tar" if expected else None


def _pick(rows: Sequence[dict[str, Any]], fraction: float) -> Sequence[dict[str, Any]]:
    """A sample that is the same each time, spread over the shard."""
    count = min(len(rows), max(1, math.ceil(fraction * len(rows))))
    chosen = random.Random(len(rows)).sample(range(len(rows)), count)  # noqa: S311  (no secret depends on it)
    return [rows[row] for row in sorted(chosen)]


def _examine(file: IO[bytes], row: dict[str, Any]) -> str | None:
    file.seek(row["offset"])
    data = file.read(row["size"])
    if hashlib.sha256(data).digest() != row["hash"]:
        return "its bytes are not the ones in the index"
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            image.load()
            size = image.size
    except Exception as error:  # whatever a decoder raises, the photograph is unusable
        return f"cannot be decoded ({error})"
    return None if size == (row["width"], row["height"]) else f"is {size[0]} by {size[1]} pixels, unlike its index"


def _check_totals(dataset: Dataset) -> list[Finding]:
    findings = []
    for split, info in dataset.manifest.splits.items():
        shards = dataset.shards(split)
        if (len(shards), sum(shard.samples for shard in shards)) != (info.shards, info.samples):
            text = f"the shard list of {split} does not add up to what the manifest says; ingest again"
            findings.append(Finding("error", text))
    return findings


def _check_classes(dataset: Dataset) -> list[Finding]:
    if "label" not in dataset.manifest.fields:
        return []
    findings = []
    for split, info in dataset.manifest.splits.items():
        missing = [name for name, count in zip(dataset.manifest.classes, info.class_counts, strict=True) if count == 0]
        if missing:
            advice = "add photographs of them" if split == "train" else "enlarge the split or give splits by hand"
            text = f"{split} has no photograph of {len(missing)} classes ({_some(missing)}); {advice}"
            findings.append(Finding("error" if split == "train" else "warning", text))
        elif max(info.class_counts) > _SKEW * min(info.class_counts):
            most, least = max(info.class_counts), min(info.class_counts)
            text = f"classes of {split} have from {least} to {most} photographs; train with a balanced class weight"
            findings.append(Finding("warning", text))
    return findings


def _check_leaks(indexes: dict[str, Index]) -> list[Finding]:
    findings = []
    contents = {split: Counter(row.tobytes() for row in index.hashes) for split, index in indexes.items()}
    groups = {split: set(index.groups) for split, index in indexes.items()}
    for one, other in combinations(indexes, 2):
        shared = contents[one].keys() & contents[other].keys()
        if shared:
            copies = sum(contents[other][content] for content in shared)
            text = f"{copies} photographs of {other} are in {one} too; remove them from one of the two in the source"
            findings.append(Finding("error", text))
        together = groups[one] & groups[other]
        if together and not shared:
            text = (
                f"{len(together)} groups are in both {one} and {other} ({_some(sorted(together))}); give each one split"
            )
            findings.append(Finding("warning", text))
    for split, counts in contents.items():
        surplus = sum(counts.values()) - len(counts)
        if surplus:
            text = f"{surplus} photographs of {split} are copies of others in it; remove them unless they are meant"
            findings.append(Finding("note", text))
    return findings


def _note_rejects(dataset: Dataset) -> list[Finding]:
    rejects = dataset.manifest.rejects
    if not rejects:
        return []
    reasons = ", ".join(f"{count} {reason}" for reason, count in rejects.items())
    listed = storage.join(dataset.url, dataset.manifest.rejects_file or "")
    return [Finding("note", f"{sum(rejects.values())} photographs were left out at ingest ({reasons}); see {listed}")]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown}, …"


@contextmanager
def _local(url: str) -> Iterator[Path]:
    """The file on this machine; a remote one is fetched piece by piece and deleted afterwards."""
    if storage.is_local(url):
        yield storage.local_path(url)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.tar"
        size = storage.size(url)
        with path.open("wb") as file:
            for start in range(0, size, _PIECE):
                file.write(storage.read_range(url, start, min(size, start + _PIECE)))
        yield path
