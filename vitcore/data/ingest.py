"""From a raw corpus to a published dataset: plan, write the shards (anywhere, in any order), publish.

    planned = plan("photos", IngestConfig())
    results = [write_shard(job) for job in planned.jobs(url)]      # or mapped over a cluster
    ref = publish(planned, results, url)

Which split a photograph falls into depends on its group alone (its content, unless the corpus names groups), so that it
never changes sides; the order in the shards depends on content and seed, so that every shard is a fair sample.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import pairwise

from vitcore import storage
from vitcore.data import manifest
from vitcore.data.convert import Form, estimate, quiet
from vitcore.data.corpus import Corpus, Item, Reject
from vitcore.data.ingest_config import IngestConfig, SplitFractions
from vitcore.data.manifest import Dataset, DatasetRef, Manifest, SplitInfo
from vitcore.data.shards import LAYOUT_VERSION, Sample, ShardJob, ShardResult, write_shard
from vitcore.data.sources import read_corpus
from vitcore.errors import RequestError, WorkError
from vitcore.identity import canonical_json, identity

_READERS = 16  # photographs hashed at once: reading, not hashing, is what waits
_CHUNK = 4096  # photographs handed to the readers at a time
_TAR_BYTES = 2816  # what a sample takes besides its image: three headers, class, metadata, padding
_SHARD = re.compile(r"[^/]+/([0-9]{5,})\.tar")
_ORDER = ("train", "val", "test")

Progress = Callable[[int, int], None]
"""Told how many of how many are done."""


@dataclass(frozen=True)
class Plan:
    """Which photograph goes where: a function of the corpus and the settings, and of nothing else."""

    identity: str
    """Name of what this ingest makes: equal identities, equal datasets."""
    source: str
    config: IngestConfig
    fields: tuple[str, ...]
    classes: tuple[str, ...]
    shards: dict[str, tuple[tuple[Sample, ...], ...]] = field(repr=False)
    """Of each split: the samples of its shards, in order."""
    rejects: tuple[Reject, ...] = ()
    """Left out before anything was decoded."""

    @property
    def samples(self) -> int:
        """Photographs to be stored."""
        return sum(len(shard) for shards in self.shards.values() for shard in shards)

    def jobs(self, url: str) -> list[ShardJob]:
        """The shards to write at `url`, numbered so that no published version loses one of its own.

        Raises:
            RequestError: the dataset would lie inside its own source.
        """
        url = storage.absolute(url)
        if f"{url}/".startswith(f"{self.source}/"):
            raise RequestError(f"the dataset {url} would lie inside its source {self.source}; give another URL")
        first = _first_number(url, self.identity)
        form = Form(self.config.resize, self.config.quality, self.config.max_pixels)
        return [
            ShardJob(url, split, first + number, samples, form, len(self.classes))
            for split, shards in self.shards.items()
            for number, samples in enumerate(shards)
        ]


def plan(source: str, config: IngestConfig | None = None, *, progress: Progress | None = None) -> Plan:
    """List a corpus, read every photograph once for its hash, and give each its split, its shard and its key.

    Raises:
        RequestError: the source is missing, empty, has an empty class, or is a table without the columns asked for.
    """
    config = config or IngestConfig()
    corpus = read_corpus(source, config.table)
    found, rejects = _hash_all(corpus.items, config.resize, progress)
    if not found:
        raise RequestError(f"none of the {len(corpus.items)} photographs that {source} names can be read; check paths")
    splits: dict[str, list[tuple[Sample, int]]] = {}
    for item, sample, size in _samples(found, corpus):
        splits.setdefault(item.split or assign(sample.group, config.splits), []).append((sample, size))
    ordered = sorted(splits, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    return Plan(
        identity=_identity(splits, corpus, config),
        source=corpus.source,
        config=config,
        fields=corpus.fields,
        classes=corpus.classes,
        shards={split: _cut(splits[split], config) for split in ordered},
        rejects=(*corpus.rejects, *rejects),
    )


def assign(group: str, splits: SplitFractions) -> str:
    """The split of a group: by its hash alone, test first, so that a larger val takes from train and not from test."""
    place = int.from_bytes(hashlib.sha256(f"split:{group}".encode()).digest()[:8], "big") / 2**64
    if place < splits.test:
        return "test"
    return "val" if place < splits.test + splits.val else "train"


def publish(planned: Plan, results: Iterable[ShardResult], url: str) -> DatasetRef:
    """Publish what the jobs of a plan have written as the current version.

    Raises:
        WorkError: shards are missing, or more photographs were rejected than the error budget allows (the sentence
            says why and names the file that lists them).
    """
    url = storage.absolute(url)
    written = sorted(results, key=lambda result: result.shard.name)
    rejects = [*planned.rejects, *(reject for result in written for reject in result.rejects)]
    stored = sum(result.shard.samples for result in written)
    if stored + sum(len(result.rejects) for result in written) != planned.samples:
        raise WorkError(f"not every shard of the ingest into {url} was written; run it again")
    rejects_file = _list_rejects(planned, rejects, stored, url)
    shards = {
        split: [result.shard for result in written if result.split == split and result.shard.samples]
        for split in planned.shards
    }
    shards = {split: listed for split, listed in shards.items() if listed}
    mean, std = _statistics([result for result in written if result.split == "train"] or written)
    version = Manifest(
        fields=planned.fields,
        classes=planned.classes,
        splits={split: _split_info(split, written, labelled="label" in planned.fields) for split in shards},
        mean=mean,
        std=std,
        source=planned.source,
        settings=planned.config.model_dump(mode="json"),
        rejects=dict(sorted(Counter(reject.reason for reject in rejects).items())),
        rejects_file=rejects_file,
        identities=(planned.identity,),
    )
    return manifest.publish(url, version, shards)


def ingest(
    source: str,
    url: str,
    config: IngestConfig | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> DatasetRef:
    """The whole way in this process: plan, write with a few threads, publish; what was published before is recognised.

    Args:
        source: folder or table, local or remote.
        url: where the dataset shall be.
        config: default: `IngestConfig()`.
        threads: shards written at once; default: the machine's cores.
        progress: told of finished shards.
    """
    planned = plan(source, config)
    done = manifest.find(url, planned.identity)
    if done is not None:
        manifest.point(done.url, done.digest)
        return done
    jobs, results = planned.jobs(url), []
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        try:
            for result in pool.map(write_shard, jobs):
                results.append(result)
                if progress:
                    progress(len(results), len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what is being written may finish, nothing else begins
            raise
    return publish(planned, results, url)


def _hash_all(
    items: Sequence[Item], resize: int | None, progress: Progress | None
) -> tuple[list[tuple[Item, str, int]], list[Reject]]:
    """Each readable item with its SHA-256 and the bytes it will about take; the others with the reason."""

    def examine(item: Item) -> tuple[str, int] | str:
        try:
            data = storage.read(item.url)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return "no such file"
        except PermissionError:
            return "no permission to read it"
        return hashlib.sha256(data).hexdigest(), estimate(data, resize)

    found, rejects = [], []
    with quiet(), ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(items), _CHUNK):
            chunk = items[start : start + _CHUNK]
            for item, seen in zip(chunk, pool.map(examine, chunk), strict=True):
                if isinstance(seen, str):
                    rejects.append(Reject(item.source, seen))
                else:
                    found.append((item, *seen))
            if progress:
                progress(start + len(chunk), len(items))
    return found, rejects


def _samples(found: Sequence[tuple[Item, str, int]], corpus: Corpus) -> Iterable[tuple[Item, Sample, int]]:
    """Samples with keys from their content; copies of one photograph are told apart by a number."""
    labels = {name: label for label, name in enumerate(corpus.classes)}
    copies: Counter[str] = Counter()
    for item, content, size in sorted(found, key=lambda one: (one[1], one[0].source)):
        stem = content[:16]
        key = f"{stem}-{copies[stem]}" if copies[stem] else stem
        copies[stem] += 1
        label = -1 if item.label is None else labels[item.label]
        group = item.group or content
        yield item, Sample(key, item.url, item.source, content, label, item.label, item.captions, group), size


def _cut(samples: Sequence[tuple[Sample, int]], config: IngestConfig) -> tuple[tuple[Sample, ...], ...]:
    """Shuffle by content and seed, and cut into shards of about the target size and an even number of samples."""
    shuffled = sorted(samples, key=lambda one: hashlib.sha256(f"{config.seed}:{one[0].key}".encode()).digest())
    total = sum(size + _TAR_BYTES for _, size in shuffled)
    shards = min(len(shuffled), max(1, math.ceil(total / (config.shard_mb * 10**6))))
    edges = [number * len(shuffled) // shards for number in range(shards + 1)]
    return tuple(tuple(sample for sample, _ in shuffled[start:stop]) for start, stop in pairwise(edges))


def _identity(splits: dict[str, list[tuple[Sample, int]]], corpus: Corpus, config: IngestConfig) -> str:
    listing = hashlib.sha256()
    for split, samples in sorted(splits.items()):
        for sample, _ in samples:
            row = [split, sample.hash, sample.source, sample.label_name, sample.captions, sample.group]
            listing.update(canonical_json(row).encode())
    parts = config.model_dump(mode="json", exclude={"error_budget", "table"})
    parts |= {"fields": corpus.fields, "classes": corpus.classes}
    return identity("ingest", LAYOUT_VERSION, parts, {"source": listing.hexdigest()})


def _first_number(url: str, name: str) -> int:
    """One more than the highest number that a version of another ingest uses."""
    first = 0
    for version in manifest.versions(url):
        dataset = Dataset.open(DatasetRef(url=url, digest=version))
        if name in dataset.manifest.identities:
            continue  # the same shards: found finished, or written again to the same bytes
        for split in dataset.manifest.splits:
            numbers = (match for shard in dataset.shards(split) if (match := _SHARD.fullmatch(shard.name)))
            first = max([first, *(int(match[1]) + 1 for match in numbers)])
    return first


def _list_rejects(planned: Plan, rejects: Sequence[Reject], stored: int, url: str) -> str | None:
    if not rejects:
        return None
    name = f"{manifest.FOLDER}/{planned.identity}.rejects.jsonl"
    lines = (json.dumps(asdict(reject), ensure_ascii=False) + "\n" for reject in rejects)
    storage.write(storage.join(url, name), "".join(lines).encode())
    total = stored + len(rejects)
    if not stored or len(rejects) > planned.config.error_budget * total:
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(r.reason for r in rejects).most_common())
        raise WorkError(
            f"{len(rejects)} of {total} photographs were rejected ({reasons}), more than the error budget of "
            f"{planned.config.error_budget:.2%}; {storage.join(url, name)} lists them: repair or remove them, "
            "or raise the error budget"
        )
    return name


def _split_info(split: str, written: Sequence[ShardResult], *, labelled: bool) -> SplitInfo:
    results = [result for result in written if result.split == split and result.shard.samples]
    counts = tuple(map(sum, zip(*(result.class_counts for result in results), strict=True))) if labelled else ()
    return SplitInfo(
        samples=sum(result.shard.samples for result in results),
        shards=len(results),
        bytes=sum(result.shard.bytes for result in results),
        class_counts=counts,
    )


def _statistics(written: Sequence[ShardResult]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Channel means and deviations in [0, 1], from exact sums: the same for every cut into shards."""
    pixels = max(1, sum(result.pixels for result in written))
    means = [sum(result.sums[channel] for result in written) / pixels for channel in range(3)]
    squares = [sum(result.squares[channel] for result in written) / pixels for channel in range(3)]
    stds = [math.sqrt(max(0.0, square - mean**2)) for mean, square in zip(means, squares, strict=True)]
    red, green, blue = ((round(mean / 255, 6), round(std / 255, 6)) for mean, std in zip(means, stds, strict=True))
    return (red[0], green[0], blue[0]), (red[1], green[1], blue[1])
