"""Which of several copies stays: the rule by which duplicates are left out of a dataset.

Copies are ranked: a photograph of the test split before one of another evaluation split before one to train on; then
one that is in the dataset already before a new one; then by name. The first of each stays. So no training photograph is
a copy of one that is evaluated on, and the answer does not depend on the order in which photographs are listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vitcore.data.audit.audit import AuditConfig, Buckets, Progress, near, together
from vitcore.data.audit.components import Components, Rows
from vitcore.data.audit.fingerprints import Photographs, join_equal
from vitcore.data.dataset.manifest import Dataset

_RANK = {"test": 0, "train": 2}  # every other split is evaluated on too, and comes between
COPY, NEAR_COPY = "copy of", "near copy of"


@dataclass(frozen=True, eq=False)
class Dedup:
    """What stays of N photographs."""

    original: Rows
    """[N]: the photograph that stays in the stead of each; its own row for those that stay."""
    same: NDArray[np.bool_]
    """[N]: whether it has the same content as that one; else it is a near copy."""

    @property
    def keep(self) -> NDArray[np.bool_]:
        """[N]: whether it stays."""
        stays: NDArray[np.bool_] = self.original == np.arange(len(self.original))
        return stays

    def reasons(self, names: Sequence[str]) -> dict[int, str]:
        """Why each photograph that does not stay is left out (``copy of birds/7.jpg``), by row.

        Args:
            names: [N], what to call the photographs.
        """
        return {
            row: f"{COPY if self.same[row] else NEAR_COPY} {names[int(self.original[row])]}"
            for row in np.flatnonzero(~self.keep).tolist()
        }


def exact_copies(
    contents: Sequence[bytes], splits: Sequence[str], sources: Sequence[str], settled: Sequence[bool] | None = None
) -> Dedup:
    """Leave out photographs whose content is there already. For a plan: nothing is read.

    Labels play no part: of copies with different labels the first stays with its own.

    Args:
        contents: [N] SHA-256 of each photograph's file; empty: unknown, never a copy.
        splits: [N] names of the splits they fall into.
        sources: [N] names in the corpus.
        settled: [N] whether each is in the dataset already; default: none is.
    """
    rank = _rank(splits, sources, settled)
    same = Components(len(rank))
    join_equal(same, np.array(list(contents), "S32"))
    return _chosen(same.names(), rank)


def copies(dataset: Dataset, config: AuditConfig | None = None, progress: Progress | None = None) -> Dedup:
    """Leave out copies and near copies from a dataset that is written.

    A near copy is left out only if it is near one that stays: no chain of small differences takes anything along.

    Args:
        dataset: an opened version. Rows are numbered through its splits, in the manifest's order.
        config: what counts as a near copy; None: exact copies only.
        progress: told how much of the search is done.

    Raises:
        WorkError: an index is missing or damaged, or there are more near copies than can be held.
    """
    photographs = Photographs.of([(dataset, split) for split in dataset.manifest.splits])
    splits = [part.split for part in photographs.parts for _ in range(part.start, part.stop)]
    sources = [str(source) for split in dataset.manifest.splits for source in dataset.index(split).sources]
    rank = _rank(splits, sources, None)
    exact = _chosen(photographs.contents(), rank)
    if config is None:
        return exact
    pairs = together(near(photographs, Buckets.of(photographs, np.flatnonzero(exact.keep)), None, config, progress))
    original = exact.original.copy()
    one_first = rank[pairs.left] < rank[pairs.right]
    better = np.where(one_first, pairs.left, pairs.right)
    worse = np.where(one_first, pairs.right, pairs.left)
    for pair in np.lexsort((rank[better], rank[worse])).tolist():
        first, second = int(better[pair]), int(worse[pair])
        if original[first] == first and original[second] == second:  # all that rank before it are settled by now
            original[second] = first
    original = original[exact.original]  # copies of a near copy go where it goes
    return Dedup(original, (exact.original == original) & ~exact.keep)


def _rank(splits: Sequence[str], sources: Sequence[str], settled: Sequence[bool] | None) -> Rows:
    """[N]: the place of each photograph among those that should stay."""
    kinds = np.array([_RANK.get(split, 1) for split in splits], np.int64)
    new = np.zeros(len(kinds), bool) if settled is None else ~np.asarray(settled, bool)
    columns = {"kind": kinds, "new": new, "source": pa.array(sources, pa.string()), "row": np.arange(len(kinds))}
    order = pc.sort_indices(pa.table(columns), [(name, "ascending") for name in columns]).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def _chosen(groups: Rows, rank: Rows) -> Dedup:
    """In the stead of each member of a group stays the member that ranks first."""
    first = np.full(len(groups), len(groups))
    np.minimum.at(first, groups, rank)
    row_of = np.argsort(rank)
    original = row_of[first[groups]] if len(groups) else groups
    return Dedup(original, original != np.arange(len(original)))
