"""Leakage: which photographs of an evaluation split have a copy among the training photographs.

What was found is kept beside the evaluated version, so that every later score can carry it:

<url>/_vit/<digest>.<split>.overlap.<training>.<settings>.parquet  which photographs, and what they are copies of
<url>/_vit/<digest>.<split>.overlap.<training>.<settings>.json     how many; written last: with it the overlap is there
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from vitcore import storage
from vitcore.data.audit.audit import PAIRS, AuditConfig, Buckets, Near, Progress, near, table
from vitcore.data.audit.components import Rows
from vitcore.data.audit.fingerprints import Photographs
from vitcore.data.dataset.index import decode, encode
from vitcore.data.dataset.manifest import FOLDER, Dataset
from vitcore.data.dataset.shard import Value
from vitcore.errors import RequestError, WorkError
from vitcore.identity import digest

FORMAT = 1
COPIES = PAIRS.append(pa.field("exact", pa.bool_()))
"""A photograph of the evaluated split, the training photograph it is nearest to (`other_…`), and whether they are the
same."""


class OverlapSummary(Value):
    """How much of an evaluation split is known from training."""

    format: int = FORMAT
    evaluation: str
    """Digest of the evaluated version."""
    split: str
    training: str
    """Digest of the version trained on."""
    training_splits: tuple[str, ...]
    config: AuditConfig
    samples: int
    """Photographs of the evaluated split."""
    exact: int
    """Of them, those whose content is among the training photographs."""
    near: int
    """Of the others, those with a near copy there."""
    left_out: int
    """Photographs of either side that were compared by content alone: without a perceptual hash, or with one that too
    many share."""

    @property
    def copies(self) -> int:
        """Photographs with a copy of either kind."""
        return self.exact + self.near


@dataclass(frozen=True, eq=False)
class Overlap:
    """The copies that an evaluation split has among training photographs."""

    summary: OverlapSummary
    copies: pa.Table
    """Of the schema `COPIES`: a row for each photograph that has any."""

    @property
    def rows(self) -> Rows:
        """Positions of these photographs in the evaluated split, ascending."""
        rows: Rows = self.copies.column("row").to_numpy()
        return rows

    @property
    def exact(self) -> NDArray[np.bool_]:
        """Whether each of these has the same content as a training photograph."""
        exact: NDArray[np.bool_] = self.copies.column("exact").to_numpy()
        return exact


def leakage(
    evaluation: Dataset,
    split: str,
    training: Dataset,
    training_splits: Sequence[str] = ("train",),
    config: AuditConfig | None = None,
    progress: Progress | None = None,
) -> Overlap:
    """The photographs of an evaluation split that have an exact or a near copy among training photographs.

    Args:
        evaluation: dataset to be evaluated on; may be the training dataset itself.
        split: its split.
        training: dataset that was or will be trained on.
        training_splits: its splits.
        config: what counts as a near copy.
        progress: told how much of the search is done.

    Raises:
        RequestError: no such split, or the split is itself trained on.
        WorkError: an index is missing or damaged.
    """
    config = config or AuditConfig()
    if evaluation.digest == training.digest and split in training_splits:
        raise RequestError(f"the split {split!r} of {evaluation.url} cannot be compared with itself; name another one")
    photographs = Photographs.of([(evaluation, split), *((training, name) for name in training_splits)])
    count = photographs.parts[0].stop
    contents = photographs.contents()
    trained = np.full(len(photographs), len(photographs))  # for each content, the first training photograph that has it
    np.minimum.at(trained, contents[count:], np.arange(count, len(photographs)))
    original = trained[contents[:count]]
    exact = original < len(photographs)
    left = Buckets.of(photographs, np.unique(contents[:count][~exact]))
    right = Buckets.of(photographs, trained[trained < len(photographs)])
    closest = Near.concat([])
    for pairs in near(photographs, left, right, config, progress):
        closest = _closest(Near.concat([closest, pairs]))
    known = _spread(closest, contents[:count], original, exact)
    copies = table(photographs, known)
    copies = copies.append_column(COPIES.field("exact"), pa.array(exact[known.left]))
    summary = OverlapSummary(
        evaluation=evaluation.digest,
        split=split,
        training=training.digest,
        training_splits=tuple(training_splits),
        config=config,
        samples=count,
        exact=int(exact.sum()),
        near=len(copies) - int(exact.sum()),
        left_out=left.left_out + right.left_out,
    )
    return Overlap(summary, copies)


def _closest(pairs: Near) -> Near:
    """Of the pairs of each left photograph the nearest one."""
    ordered = pairs.nearest_first()
    return ordered.take(np.unique(ordered.left, return_index=True)[1])


def _spread(closest: Near, contents: Rows, original: Rows, exact: NDArray[np.bool_]) -> Near:
    """What each evaluated photograph is a copy of, from what is known of the first one of its content."""
    place = np.searchsorted(closest.left, contents)
    found = np.append(closest.left, -1)[place] == contents
    same = np.flatnonzero(exact)
    alike = closest.take(place[found & ~exact])._replace(left=np.flatnonzero(found & ~exact))
    equal = Near(same, original[same], np.zeros(len(same), np.uint8), np.ones(len(same), np.float32))
    both = Near.concat([equal, alike])
    return both.take(np.argsort(both.left))


def keep(overlap: Overlap, evaluation: Dataset) -> None:
    """Write an overlap beside the evaluated version, where `find` finds it.

    Raises:
        WorkError: the place cannot be written to.
    """
    summary = overlap.summary
    name = storage.join(evaluation.url, FOLDER, _prefix(summary.evaluation, summary.split, summary.training))
    name += digest([FORMAT, summary.config.model_dump(mode="json"), summary.training_splits])
    try:
        storage.write(f"{name}.parquet", encode(overlap.copies))
        storage.write(f"{name}.json", summary.model_dump_json(indent=1).encode())
    except (OSError, NotImplementedError) as error:  # the second: a store that can only be read
        raise WorkError(f"what was found cannot be kept at {evaluation.url} ({error})") from error


def find(evaluation: Dataset, split: str, training: str, training_splits: Sequence[str] = ("train",)) -> Overlap | None:
    """The overlap kept for a split with the version of digest `training`: the most thorough one, None without any."""
    folder = storage.join(evaluation.url, FOLDER)
    prefix = _prefix(evaluation.digest, split, training)
    kept = []
    for name in storage.names(folder):
        if name.startswith(prefix) and name.endswith(".json"):
            summary = _summary(storage.join(folder, name))
            if summary is not None and set(summary.training_splits) == set(training_splits):
                kept.append((summary.config.confirm, summary.config.radius, -summary.config.similarity, name, summary))
    if not kept:
        return None
    *_, name, summary = max(kept, key=lambda one: one[:-1])
    try:
        return Overlap(summary, decode(storage.read(storage.join(folder, f"{name.removesuffix('.json')}.parquet"))))
    except (OSError, pa.ArrowInvalid):
        return None  # damaged: found anew


def _summary(name: str) -> OverlapSummary | None:
    try:
        summary = OverlapSummary.model_validate_json(storage.read(name))
    except (OSError, ValidationError):
        return None
    return summary if summary.format == FORMAT else None


def _prefix(evaluation: str, split: str, training: str) -> str:
    return f"{evaluation}.{split}.overlap.{training}."
