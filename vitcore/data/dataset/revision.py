"""A version in the making: rows of the one before that stay, some of them edited, and shards that are new.

Every way of changing a dataset ends here: ingest, append, edit, deduplication, quarantine, adoption of others' tars.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vitcore.data.corpus.listing import class_order
from vitcore.data.dataset import manifest
from vitcore.data.dataset.excluded import save
from vitcore.data.dataset.manifest import Dataset, DatasetRef, Manifest, SplitInfo
from vitcore.data.dataset.moments import Moments
from vitcore.data.dataset.rows import ROWS, Rows
from vitcore.data.dataset.shard import Shard
from vitcore.errors import RequestError

Said = dict[str, pa.ChunkedArray]
"""New values for all rows of a version, by column; ``class`` holds names."""
_ORDER = ("train", "val", "test")


class Added(Protocol):
    """A new shard with what is counted of it; `vitcore.data.ingest.shards.ShardResult` is one."""

    @property
    def split(self) -> str:
        """Where it belongs."""

    @property
    def shard(self) -> Shard:
        """The shard."""

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Samples of each class."""

    @property
    def moments(self) -> Moments:
        """Sums over its pixels."""


@dataclass(frozen=True)
class Revision:
    """What stays of a version, and as what."""

    classes: tuple[str, ...]
    """Names, of what stays and of what is added."""
    kept: pa.Table = field(repr=False)
    """Rows that stay, as they shall be; of the schema `vitcore.data.dataset.rows.ROWS`."""
    changed: NDArray[np.bool_] = field(repr=False)
    """Which of them are edited."""
    rows: Rows | None = field(default=None, repr=False)
    """All rows of the version before; None: nothing of it stays."""

    @property
    def edited(self) -> int:
        """Samples whose label, captions, group, split or metadata changes."""
        return int(self.changed.sum())


def revise(
    rows: Rows | None,
    classes: Sequence[str],
    said: Said,
    stays: NDArray[np.bool_],
    *,
    new_classes: Iterable[str] = (),
    keep_classes: bool = False,
) -> Revision:
    """Edit the rows of a version.

    Labels keep their meaning: class names that are still used keep their order, new ones follow. Where a class is used
    no more, later labels move up, in every index.

    Args:
        rows: of the version; None: there is nothing to keep.
        classes: its class names.
        said: what shall be true of all rows, for the columns that may change.
        stays: which rows stay.
        new_classes: names that added shards will bring.
        keep_classes: let classes that are used no more keep their numbers.
    """
    own = ROWS.empty_table() if rows is None else rows.table
    names = said["class"] if "class" in said else class_names(own, classes)
    used = set(names.filter(pa.array(stays)).drop_null().unique().to_pylist()) | set(new_classes)
    old = tuple(name for name in classes if keep_classes or name in used)
    ordered = (*old, *class_order(used - set(old)))
    columns = {name: values for name, values in said.items() if name != "class"}
    columns["label"] = pc.fill_null(pc.index_in(names, value_set=pa.array(ordered, pa.string())), -1).cast(pa.int64())
    table, changed = own, np.zeros(len(own), bool)
    for name, values in columns.items():
        had = own.column(name)
        if not values.equals(had):
            pairs = zip(had.to_pylist(), values.to_pylist(), strict=True)
            changed |= np.fromiter((one != other for one, other in pairs), bool, len(own))
            table = table.set_column(table.schema.get_field_index(name), ROWS.field(name), values)
    return Revision(ordered, table.filter(pa.array(stays)), changed[stays], rows)


def class_names(table: pa.Table, classes: Sequence[str]) -> pa.ChunkedArray:
    """The class name of every row; null where it has no label."""
    labels = table.column("label")
    place = pc.if_else(pc.less(labels, 0), pa.scalar(None, pa.int64()), labels)
    names: pa.ChunkedArray = pa.chunked_array([pa.array(classes, pa.string())]).take(place)
    return names


def publish(
    url: str,
    revision: Revision,
    parent: Dataset | None,
    *,
    fields: tuple[str, ...],
    source: str,
    settings: Mapping[str, Any],
    change: str,
    added: Sequence[Added] = (),
    rejects: Mapping[str, int] | None = None,
    rejects_file: str | None = None,
    excluded: pa.Table | None = None,
    license: str | None = None,
    identity: str | None = None,
) -> DatasetRef:
    """Write the indexes that changed, and publish the version.

    Args:
        url: of the dataset.
        revision: what stays.
        parent: the version before.
        fields: what every sample has.
        source: where the photographs come from.
        settings: how they were ingested.
        change: what was done, in words.
        added: new shards.
        rejects: photographs left out for their faults, by reason.
        rejects_file: which ones.
        excluded: photographs left out on purpose; default: those that the parent leaves out.
        license: terms of the photographs; default: the parent's.
        identity: of the ingest.

    Raises:
        RequestError: nothing would be left.
        WorkError: somebody else published meanwhile.
    """
    lists = revision.rows.revised(url, revision.kept, revision.changed) if revision.rows else {}
    for one in added:
        if one.shard.samples:
            lists.setdefault(one.split, []).append(one.shard)
    if not lists:
        raise RequestError(f"no photograph would be left in {url}; nothing was published")
    lists = {split: lists[split] for split in sorted(lists, key=_place)}
    before = parent.manifest.splits if parent is not None and revision.rows is not None else {}
    splits = {
        split: _split_info(revision, split, shards, [one for one in added if one.split == split], before.get(split))
        for split, shards in lists.items()
    }
    mean, std = splits.get("train", next(iter(splits.values()))).moments.statistics()
    version = Manifest(
        fields=fields,
        classes=revision.classes,
        splits=splits,
        mean=mean,
        std=std,
        source=source,
        settings=dict(settings),
        rejects=dict(sorted((rejects or {}).items())),
        rejects_file=rejects_file,
        parent=parent.digest if parent else None,
        change=change,
        excluded=(parent.manifest.excluded if parent else None) if excluded is None else save(url, excluded),
        license=license or (parent.manifest.license if parent else None),
    )
    return manifest.publish(url, version, lists, expected=parent.digest if parent else None, identity=identity)


def _place(split: str) -> tuple[int, str]:
    """Where a split stands among others: train, val, test, then any by name."""
    return (_ORDER.index(split) if split in _ORDER else len(_ORDER)), split


def _split_info(
    revision: Revision, split: str, shards: Sequence[Shard], added: Sequence[Added], before: SplitInfo | None
) -> SplitInfo:
    labels = revision.kept.filter(pc.equal(revision.kept.column("split"), split)).column("label").to_numpy()
    counts = np.bincount(labels[labels >= 0], minlength=len(revision.classes))
    for one in added:
        counts += np.asarray(one.class_counts, counts.dtype)
    return SplitInfo(
        samples=sum(shard.samples for shard in shards),
        shards=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        class_counts=tuple(counts.tolist()) if revision.classes else (),
        moments=sum((one.moments for one in added), before.moments if before else Moments()),
    )
