"""What the indexes of a whole version say: classes, captions, copies, leaks between splits, how fair the shards are.

Shard after shard is added and forgotten but for 16 bytes a sample: the beginning of its content's hash (64 bits: among
100 million photographs two different ones look alike with a chance of 1 in 4,000) and a hash of its group.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from vitcore.data.dataset.manifest import Dataset, SplitInfo
from vitcore.data.dataset.shard import Shard
from vitcore.data.maintenance.findings import Finding, some
from vitcore.data.maintenance.verify import Tally

_SKEW = 100  # largest class over smallest, above which training wants a weight
_DRIFT = 0.2  # part of a shard's photographs that would have to change class, beyond chance, for a fair sample
_TOUCHED = 0.1  # part of a split in such shards, above which it matters
_SHUFFLED = "train"


class Census:
    """Counts a version's samples.

    Args:
        dataset: an opened version.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._splits = {name: _Split(len(dataset.manifest.classes)) for name in dataset.manifest.splits}

    def add(self, split: str, shard: Shard, tally: Tally) -> None:
        """Count a shard whose index is sound."""
        self._splits[split].add(shard, tally, self._dataset.manifest.splits[split])

    def findings(self) -> list[Finding]:
        """What is to be said, once every shard was added."""
        findings = [*self._totals()]
        if findings:
            return findings  # what does not add up has nothing reliable to say about classes
        return [*self._classes(), *self._captions(), *self._fairness(), *self._leaks(), *self._copies()]

    def _totals(self) -> Iterator[Finding]:
        for name, info in self._dataset.manifest.splits.items():
            seen = self._splits[name]
            if (seen.shards, seen.samples) != (info.shards, info.samples):
                text = f"the shard list of {name} does not add up to what the manifest says; ingest again"
                yield Finding("error", text)
            elif seen.nameless:
                yield Finding("error", f"{seen.nameless} labels of {name} have no class name; ingest again")
            elif info.class_counts and tuple(seen.counts.tolist()) != info.class_counts:
                text = f"the labels of {name} are not as many of each class as the manifest says; ingest again"
                yield Finding("error", text)

    def _classes(self) -> Iterator[Finding]:
        if "label" not in self._dataset.manifest.fields:
            return
        for name, info in self._dataset.manifest.splits.items():
            unlabelled = self._splits[name].unlabelled
            if unlabelled:
                text = f"{unlabelled} of {info.samples} photographs of {name} have no label; give them one, or leave"
                yield Finding("warning", f"{text} them out, with: vit edit {self._dataset.url} TABLE")
            counted = zip(self._dataset.manifest.classes, info.class_counts, strict=True)
            missing = [label for label, count in counted if count == 0]
            if missing:
                advice = "add photographs of them" if name == "train" else "enlarge the split or give splits by hand"
                text = f"{name} has no photograph of {len(missing)} classes ({some(missing)}); {advice}"
                yield Finding("error" if name == "train" else "warning", text)
            elif info.class_counts and max(info.class_counts) > _SKEW * min(info.class_counts):
                most, least = max(info.class_counts), min(info.class_counts)
                text = f"classes of {name} have from {least} to {most} photographs; train with a balanced class weight"
                yield Finding("warning", text)

    def _captions(self) -> Iterator[Finding]:
        if "captions" not in self._dataset.manifest.fields:
            return
        for name, seen in self._splits.items():
            if seen.wordless:
                text = f"{seen.wordless} of {seen.samples} photographs of {name} have no caption; write one, or leave"
                yield Finding("warning", f"{text} them out, with: vit edit {self._dataset.url} TABLE")

    def _fairness(self) -> Iterator[Finding]:
        name = _SHUFFLED
        if name not in self._splits or not self._splits[name].unfair:
            return
        seen = self._splits[name]
        touched = sum(samples for _, samples in seen.unfair)
        if touched > _TOUCHED * seen.samples:
            names = some(shard for shard, _ in seen.unfair)
            text = (
                f"{len(seen.unfair)} of {seen.shards} shards of {name} ({names}) have the classes in other shares than "
                "the split, so that steps would show few classes at a time; train with a larger data.window, or write "
                f"the photographs anew, shuffled: vit ingest {self._dataset.url} NEW_URL --tars reshard"
            )
            yield Finding("warning", text)

    def _leaks(self) -> Iterator[Finding]:
        for one, other in combinations(self._splits, 2):
            contents = [np.concatenate(self._splits[name].contents or [_NONE]) for name in (one, other)]
            copies = int(np.isin(contents[1], contents[0]).sum())
            if copies:
                text = f"{copies} photographs of {other} are in {one} too; remove them from one, in the source"
                yield Finding("error", f"{text} or with: vit edit {self._dataset.url} TABLE --delete")
                continue
            groups = [np.concatenate(self._splits[name].groups or [_NONE]) for name in (one, other)]
            together = np.intersect1d(groups[0], groups[1])
            if len(together):
                names = some(self._group_names(one, together))
                text = f"{len(together)} groups are in both {one} and {other} ({names}); give each one split"
                yield Finding("warning", text)

    def _copies(self) -> Iterator[Finding]:
        for name, seen in self._splits.items():
            contents = np.concatenate(seen.contents or [_NONE])
            surplus = len(contents) - len(np.unique(contents))
            if surplus:
                text = f"{surplus} photographs of {name} are copies of others in it; remove them unless they are meant"
                yield Finding("note", f"{text} (near copies are found by: vit audit {self._dataset.url})")

    def _group_names(self, split: str, wanted: NDArray[np.uint64]) -> Iterator[str]:
        """Names of groups known by their hash, from the indexes of the shards that have them."""
        found: set[str] = set()
        for shard, groups in zip(self._dataset.shards(split), self._splits[split].groups, strict=True):
            places = np.flatnonzero(np.isin(groups, wanted))
            if len(places):
                column = self._dataset.shard_index(shard, ["group"]).column("group")
                new = {str(name) for name in column.take(places).to_pylist()} - found
                found |= new
                yield from sorted(new)


_NONE: NDArray[np.uint64] = np.empty(0, np.uint64)


class _Split:
    def __init__(self, classes: int) -> None:
        self.shards = self.samples = self.unlabelled = self.nameless = self.wordless = 0
        self.counts = np.zeros(classes, np.int64)
        self.contents: list[NDArray[np.uint64]] = []
        self.groups: list[NDArray[np.uint64]] = []
        self.unfair: list[tuple[str, int]] = []

    def add(self, shard: Shard, tally: Tally, info: SplitInfo) -> None:
        known = tally.labels[(tally.labels >= 0) & (tally.labels < len(self.counts))]
        counts = np.bincount(known, minlength=len(self.counts))
        self.shards += 1
        self.samples += len(tally.labels)
        self.unlabelled += int((tally.labels < 0).sum())
        self.nameless += int((tally.labels >= len(self.counts)).sum()) if len(self.counts) else 0
        self.wordless += tally.wordless
        self.counts += counts
        self.contents.append(tally.contents)
        self.groups.append(tally.groups)
        if info.shards > 1 and drift(counts, np.asarray(info.class_counts, np.int64)) > _DRIFT:
            self.unfair.append((shard.name, shard.samples))


def drift(counts: NDArray[np.int64], whole: NDArray[np.int64]) -> float:
    """How unlike the whole a part's classes are, beyond what chance makes of a fair sample.

    The total variation distance, less its expectation and two of its largest deviations: for a class of which λ are
    expected the mean deviation is √(2λ/π), below one of them 2λ·exp(−λ) (Poisson), and one sample more or less
    moves the distance by 1 / n at most, so its deviation is below 1 / (2√n).
    """
    part, total = int(counts.sum()), int(whole.sum())
    if not part or not total:
        return 0.0
    expected = whole * (part / total)
    by_chance = np.where(expected < 1, 2 * expected * np.exp(-expected), np.sqrt(2 * expected / np.pi))
    distance = np.abs(counts - expected).sum() / (2 * part)
    return float(distance - by_chance.sum() / (2 * part) - 1 / np.sqrt(part))
