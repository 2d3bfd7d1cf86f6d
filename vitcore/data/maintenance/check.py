"""Is a dataset fit to train on? Everything found wrong, each in one sentence that says what to do.

Every tar is read once from end to end, whatever its size, by a few threads: checksum, each index against the members,
and a sample of the photographs against their hashes and a decoder (`vitcore.data.maintenance.verify`). Then the indexes
alone answer for class balance, copies and leakage between splits (`vitcore.data.maintenance.census`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

from vitcore import storage
from vitcore.data.dataset import manifest
from vitcore.data.dataset.manifest import Dataset, DatasetRef
from vitcore.data.dataset.shard import Shard
from vitcore.data.ingest.convert import quiet
from vitcore.data.ingest.parallel import threads
from vitcore.data.maintenance.census import Census
from vitcore.data.maintenance.findings import Finding, some
from vitcore.data.maintenance.verify import Verdict, verify, written_here
from vitcore.errors import RequestError, WorkError

_THREADS = 8  # most tars read at once: beyond, a disk or a network is busy

Share = float | Literal["full"]
"""Fraction of the photographs to decode, at least one a shard; ``"full"``: all."""
Progress = Callable[[int, int], None]
"""Told how many of how many tars are checked."""


class Listed(NamedTuple):
    """Where a shard is listed."""

    version: Dataset
    split: str


@dataclass(frozen=True)
class Survey:
    """What was found of a version, and of those beside it."""

    dataset: Dataset
    shards: Mapping[Shard, Sequence[Listed]] = field(repr=False)
    """Every shard that was looked at, and who lists it."""
    verdicts: Mapping[Shard, Verdict] = field(repr=False)
    findings: list[Finding]

    def broken(self, split: str) -> list[tuple[Shard, Verdict]]:
        """Shards of a split of the version that cannot be trained on as they are."""
        listed = ((shard, self.verdicts[shard]) for shard in self.dataset.shards(split))
        return [(shard, verdict) for shard, verdict in listed if not verdict.sound]


def check(
    at: str | DatasetRef,
    sample: Share = 0.02,
    *,
    versions: Literal["current", "all"] = "current",
    progress: Progress | None = None,
) -> list[Finding]:
    """Verify a dataset; an empty list, or one without errors, is fit to train on.

    Args:
        at: URL (its current version is checked) or reference.
        sample: how much to decode.
        versions: ``all``: what older versions list is looked at too; what is wrong with it is a warning.
        progress: told of checked tars.

    Raises:
        RequestError: the URL holds no dataset.
    """
    return survey(Dataset.open(at), sample, versions=versions, progress=progress).findings


def survey(
    dataset: Dataset,
    sample: Share = 0.02,
    *,
    versions: Literal["current", "all"] = "current",
    known: Mapping[Shard, Verdict] | None = None,
    progress: Progress | None = None,
) -> Survey:
    """What `check` finds, with the verdict on every shard.

    Args:
        dataset: an opened version.
        sample: how much to decode.
        versions: which ones to look at.
        known: verdicts on shards that need not be looked at again.
        progress: told of checked tars.
    """
    try:
        shards = listings([dataset])
    except WorkError as error:
        return Survey(dataset, {}, {}, [Finding("error", str(error))])
    older, findings = older_versions(dataset) if versions == "all" else ([], [])
    for shard, listed in listings(older).items():
        shards.setdefault(shard, []).extend(listed)
    verdicts = dict(known or {})
    tars: dict[str, list[Shard]] = {}
    for shard in shards:
        if shard not in verdicts:
            tars.setdefault(shard.name, []).append(shard)
    work = partial(_verify, dataset.url, fraction=1.0 if sample == "full" else sample)
    with quiet():
        mapper = threads(min(_THREADS, 2 * (os.cpu_count() or 1)))
        for done, (place, found) in enumerate(mapper(work, list(tars.values())), 1):
            verdicts.update(zip(list(tars.values())[place], found, strict=True))
            if progress:
                progress(done, len(tars))
    return Survey(dataset, shards, verdicts, [*_say(dataset, shards, verdicts), *findings])


def _verify(url: str, shards: Sequence[Shard], fraction: float) -> list[Verdict]:
    return verify(url, shards[0].name, shards, fraction)


def listings(versions: Sequence[Dataset]) -> dict[Shard, list[Listed]]:
    """The shards of versions, in their order, each with those who list it.

    Raises:
        WorkError: a shard list is missing or damaged.
    """
    shards: dict[Shard, list[Listed]] = {}
    for version in versions:
        for split in version.manifest.splits:
            for shard in version.shards(split):
                shards.setdefault(shard, []).append(Listed(version, split))
    return shards


def older_versions(dataset: Dataset) -> tuple[list[Dataset], list[Finding]]:
    """The versions beside this one; those whose own files are damaged are told of."""
    found, findings = [], []
    for version in manifest.versions(dataset.url):
        if version == dataset.digest:
            continue
        try:
            opened = Dataset.open(DatasetRef(url=dataset.url, digest=version))
            listings([opened])
            found.append(opened)
        except (RequestError, WorkError) as error:
            text = f"version {version} cannot be opened any more: {error}"
            findings.append(Finding("warning", text))
    return found, findings


def _say(dataset: Dataset, shards: Mapping[Shard, list[Listed]], verdicts: Mapping[Shard, Verdict]) -> list[Finding]:
    """Everything found, in the order of the shards, what concerns the version as a whole last."""
    findings: dict[str, Finding] = {}
    census = Census(dataset)
    for shard, listed in shards.items():
        verdict = verdicts[shard]
        here = [one.split for one in listed if one.version.digest == dataset.digest]
        text = _sentence(dataset, shard, verdict)
        if text and here:
            findings.setdefault(text, Finding("error", f"{text}; {_advice(dataset, verdict)}"))
        elif text:
            older = some(dict.fromkeys(one.version.digest for one in listed))
            findings.setdefault(text, Finding("warning", f"{text}; only older versions need it ({older})"))
        for split in here if verdict.tally else ():
            assert verdict.tally is not None
            census.add(split, shard, verdict.tally)
    found = list(findings.values())
    if any(finding.severity == "error" for finding in found):
        return found  # what is broken has nothing reliable to say about classes and copies
    return [*found, *census.findings(), *_note_edits(dataset, shards, verdicts), *_note_rejects(dataset)]


def _sentence(dataset: Dataset, shard: Shard, verdict: Verdict) -> str | None:
    tar = dataset.shard_url(shard)
    if verdict.unread:
        return f"the shard {tar} could not be read ({verdict.unread})"
    if verdict.tar:
        return f"the shard {tar} {verdict.tar}"
    if verdict.index:
        return f"the index {storage.join(dataset.url, shard.index)} of the shard {tar} {verdict.index}"
    if verdict.bad:
        keys = dataset.shard_index(shard, ["key"]).column("key")
        examples = some(f"{keys[row]}: {reason}" for row, reason in sorted(verdict.bad.items()))
        return f"{len(verdict.bad)} photographs of {tar} cannot be used ({examples})"
    return None


def _advice(dataset: Dataset, verdict: Verdict) -> str:
    if verdict.unread:
        return "check again when it answers"
    if verdict.index and not verdict.tar:
        return f"make it again with: vit check {dataset.url} --repair"
    return f"restore it from a copy, or publish a version without what is lost: vit check {dataset.url} --repair"


def _note_edits(
    dataset: Dataset, shards: Mapping[Shard, list[Listed]], verdicts: Mapping[Shard, Verdict]
) -> Iterator[Finding]:
    """What readers that know tars alone see otherwise."""
    stale, inside, listed = 0, dict[str, int](), 0
    for shard, where in shards.items():
        if written_here(shard.name) and any(one.version.digest == dataset.digest for one in where):
            stale += verdicts[shard].stale
            inside[shard.name] = verdicts[shard].samples
            listed += shard.samples
    hidden = sum(inside.values()) - listed
    if stale or hidden > 0:
        text = (
            f"the tars still hold {stale} labels that were corrected and {max(0, hidden)} photographs that were left "
            "out since, and readers of plain tars see them; where that matters, write the tars anew: "
            f"vit ingest {dataset.url} NEW_URL"
        )
        yield Finding("note", text)


def _note_rejects(dataset: Dataset) -> Iterator[Finding]:
    rejects = dataset.manifest.rejects
    if rejects:
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejects.items())
        listed = storage.join(dataset.url, dataset.manifest.rejects_file or "")
        text = f"{sum(rejects.values())} photographs were left out at ingest ({reasons}); see {listed}"
        yield Finding("note", text)
