"""Will this training's way through this dataset work out? Asked before anything is started, from indexes alone.

findings = check_layout(Dataset.open("data/birds"), recipe, compute, workers=8)
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitcore import storage
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.dataset.shard import Shard
from vitcore.data.loading.order import rank_slots, resolve_lanes
from vitcore.data.maintenance.findings import Finding, in_bytes, some
from vitcore.errors import RequestError, WorkError
from vitcore.recipe import Compute, DataConfig, Recipe

_IDLE = 0.1  # part of the slots that is padding, above which it is worth a warning
_LOOKED_AT = 64  # shards whose indexes are read for the sizes of photographs
_ENLARGED = 0.5  # part of the photographs that are smaller than the input, above which it is worth a warning
_LABELLED = frozenset({"classify", "distill"})  # objectives that learn from labels
_LEAST_VALIDATED = 100  # photographs of a validation split below which its scores are noise


def check_layout(dataset: Dataset, recipe: Recipe, compute: Compute, *, workers: int) -> list[Finding]:
    """What speaks against training a recipe on a dataset with so many workers; notes say what to expect.

    Args:
        dataset: an opened version.
        recipe: with its overrides.
        compute: how it is run.
        workers: W, ranks of the training.
    """
    findings = [*_fields(dataset, recipe), *_splits(dataset, recipe)]
    data = recipe.data
    if data.train_split not in dataset.manifest.splits:
        return findings
    try:
        shards = dataset.shards(data.train_split)
        samples, batch = sum(shard.samples for shard in shards), recipe.train.batch_size
        lanes = resolve_lanes(batch, samples=samples, world=workers, lanes=data.lanes)
        findings += _idle(data, batch, lanes, workers)
        findings += _traffic(dataset, data, shards, batch, lanes, workers)
        findings += _cache(dataset, data, compute, shards, lanes, workers)
        findings += _enlarged(dataset, data, shards)
    except (RequestError, WorkError) as error:
        findings.append(Finding("error", str(error)))
    return findings


def _fields(dataset: Dataset, recipe: Recipe) -> Iterator[Finding]:
    labelled = recipe.objective.kind in _LABELLED
    try:
        dataset.require(*(["label"] if labelled else []), *(["captions"] if recipe.data.captions else []))
    except RequestError as error:
        yield Finding("error", str(error))
        return
    if not labelled:
        return
    classes = dataset.manifest.classes
    if len(classes) < 2:
        text = f"{dataset.url} has {len(classes)} classes, so there is nothing to tell apart; ingest two or more"
        yield Finding("error", text)
    info = dataset.manifest.splits.get(recipe.data.train_split)
    if info is not None and info.class_counts:
        unseen = [name for name, count in zip(classes, info.class_counts, strict=True) if not count]
        if unseen:
            text = f"{len(unseen)} of {len(classes)} classes have no photograph to train on ({some(unseen)}); add some"
            yield Finding("warning", text)


def _splits(dataset: Dataset, recipe: Recipe) -> Iterator[Finding]:
    for field, name in {"data.train_split": recipe.data.train_split, "eval.split": recipe.eval.split}.items():
        try:
            samples = dataset.split(name).samples
        except RequestError as error:
            yield Finding("error", f"{error}; set {field}, or ingest again with a share for it (--splits.{name})")
            continue
        if not samples:
            yield Finding("error", f"the split {name} is empty; set {field}, or ingest again with a share for it")
        elif field == "eval.split" and samples < _LEAST_VALIDATED:
            text = f"the checkpoint is chosen by {samples} photographs of {name}, which is mostly chance; enlarge it"
            yield Finding("warning", text)


def _idle(data: DataConfig, batch: int, lanes: int, workers: int) -> Iterator[Finding]:
    """Slots that are padding: ranks are as wide as the one with the most lanes."""
    slots = workers * rank_slots(workers, lanes, batch // lanes)
    idle = 1 - batch / slots
    if not idle:
        return
    even = [number for number in range(workers, batch + 1, workers) if batch % number == 0]
    if even:
        nearest = min(even, key=lambda number: abs(number - lanes))
        remedy = f"set data.lanes to {nearest}, which is another order of samples, or take"
    else:
        remedy = f"take a train.batch_size that {workers} divides, or"
    fewer = next(number for number in range(workers, 0, -1) if lanes % number == 0)
    text = (
        f"{idle:.0%} of the slots of a step are padding, since {lanes} lanes do not spread evenly over {workers} "
        f"workers; {remedy} {fewer} worker{'s' * (fewer > 1)}"
    )
    yield Finding("warning" if idle > _IDLE else "note", text)


def _traffic(
    dataset: Dataset, data: DataConfig, shards: list[Shard], batch: int, lanes: int, workers: int
) -> Iterator[Finding]:
    """What a worker reads in an epoch."""
    samples, size = sum(shard.samples for shard in shards), sum(shard.bytes for shard in shards)
    steps = samples * data.repeats / batch
    if steps < 1:
        text = f"a step shows {batch} samples and the split has {samples}, so that every step spans epochs"
        yield Finding("warning", f"{text}; take a smaller train.batch_size")
    tars = min(len(shards), math.ceil(len(shards) / workers) + 1)
    where = "from its store" if not _local(dataset, shards) else "from disk"
    text = (
        f"an epoch has {steps:,.1f} steps of {batch} samples in {lanes} lanes; of {len(shards)} shards a worker reads "
        f"about {tars} an epoch, {in_bytes(size / workers)} {where}, a node as many times that as it has workers"
    )
    yield Finding("note", text)


def _cache(
    dataset: Dataset, data: DataConfig, compute: Compute, shards: list[Shard], lanes: int, workers: int
) -> Iterator[Finding]:
    """Whether two windows of every lane of a worker fit where remote ones are fetched to."""
    if _local(dataset, shards):
        return
    samples, size = sum(shard.samples for shard in shards), sum(shard.bytes for shard in shards)
    held = min(data.window, math.ceil(samples / lanes))
    need = 2 * held * math.ceil(lanes / workers) * size / samples
    limit = compute.cache_gb * 2**30
    windows = f"two windows of each of the {math.ceil(lanes / workers)} lanes of a worker take {in_bytes(need)}"
    if need > limit:
        fits = max(1, int(held * limit / need))
        text = (
            f"{windows}, its cache {in_bytes(limit)}, so that samples would be fetched one by one; set "
            f"compute.cache_gb to {math.ceil(need / 2**30)}, or data.window to {fits}"
        )
        yield Finding("warning", text)
    folder = Path(compute.cache_dir or tempfile.gettempdir())
    if not folder.is_dir():
        yield Finding("error", f"there is no folder {folder} for the cache; make it, or set another compute.cache_dir")
        return
    free, used = shutil.disk_usage(folder).free, min(need, limit)
    if used > free:
        text = f"{windows}, and {folder} has {in_bytes(free)} left; set compute.cache_dir to a folder on a larger disk"
        yield Finding("error", f"{text}, or lower data.window")
    elif used * workers > free:
        text = f"the caches of {workers} workers take {in_bytes(used * workers)}, and {folder} has {in_bytes(free)}"
        yield Finding("warning", f"{text} left; if all of them run here, set compute.cache_dir to a larger disk")


def _enlarged(dataset: Dataset, data: DataConfig, shards: list[Shard]) -> Iterator[Finding]:
    """Photographs that are smaller than the network's input."""
    picked = [shards[place] for place in np.unique(np.linspace(0, len(shards) - 1, _LOOKED_AT, dtype=np.int64))]
    tables = [dataset.shard_index(shard, ["width", "height"]) for shard in picked]
    sides: NDArray[np.int32] = np.concatenate(
        [np.minimum(table.column("width").to_numpy(), table.column("height").to_numpy()) for table in tables]
    )
    small = float((sides < data.image_size).mean())
    if small:
        seen = "" if len(picked) == len(shards) else f" in {len(picked)} of {len(shards)} shards"
        text = (
            f"{small:.0%} of the photographs{seen} are smaller than data.image_size {data.image_size} and are enlarged "
            f"(median of their short sides: {int(np.median(sides))}); ingest larger ones (--resize), or take a smaller "
            "data.image_size"
        )
        yield Finding("warning" if small > _ENLARGED else "note", text)


def _local(dataset: Dataset, shards: list[Shard]) -> bool:
    return all(storage.is_local(dataset.shard_url(shard)) for shard in shards)
