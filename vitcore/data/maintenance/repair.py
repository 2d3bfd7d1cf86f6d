"""Making the current version fit again: lost indexes are made anew, and what cannot be used is left out.

    outcome = repair("data/birds")

No photograph is guessed at. A row stays if the bytes at its place hash to what the index says, and whatever is left out
is left out of a new version only: older ones still list it, and a check of them says what they miss. The photographs
come back with the next ingest of their source.

Killed at any instant, the same call goes on: indexes are replaced whole, tars are moved aside only if nothing in them
can be used, and the pointer to the new version is written last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vitcore import storage
from vitcore.data.corpus.tarwalk import Stream
from vitcore.data.dataset.edit import publish
from vitcore.data.dataset.index import encode
from vitcore.data.dataset.manifest import FOLDER, Dataset, DatasetRef
from vitcore.data.dataset.revision import revise
from vitcore.data.dataset.rows import Rows
from vitcore.data.dataset.shard import Shard, ShardList
from vitcore.data.ingest.convert import quiet
from vitcore.data.maintenance.check import Listed, Progress, Share, listings, older_versions, survey
from vitcore.data.maintenance.findings import Finding
from vitcore.data.maintenance.reindex import reindex
from vitcore.data.maintenance.verify import LARGEST, QUARANTINE, Verdict, read_index, verify, written_here
from vitcore.errors import WorkError

_WORKERS = 16  # requests to a store at once


@dataclass(frozen=True)
class Repair:
    """What was done, or would be."""

    actions: tuple[str, ...]
    """A sentence each; empty: nothing was damaged."""
    published: DatasetRef | None
    """The new version, if there had to be one."""
    findings: tuple[Finding, ...]
    """What a check says of the current version now."""


@dataclass(frozen=True)
class _Mended:
    """A shard of the version as it shall be."""

    split: str
    before: Shard
    after: Shard
    """With the size and checksum that its tar has now."""
    stays: NDArray[np.bool_] = field(repr=False)
    """Which rows of its index stay."""
    index: pa.Table | None = field(default=None, repr=False)
    """The index where it has to be written again."""
    why: str = ""
    """What was wrong, as the end of a sentence; empty: nothing."""

    @property
    def lost(self) -> int:
        """Samples that are left out."""
        return int((~self.stays).sum())


def repair(url: str, sample: Share = 0.02, *, dry_run: bool = False, progress: Progress | None = None) -> Repair:
    """Check the current version and repair what is damaged.

    Args:
        url: of the dataset.
        sample: how much to decode; a shard with a bad photograph is looked through in full.
        dry_run: say what would be done, and do nothing.
        progress: told of checked tars.

    Raises:
        RequestError: the URL holds no dataset.
        WorkError: a store does not answer, nothing at all would be left, or somebody else published meanwhile.
    """
    dataset = Dataset.open(url)
    before = survey(dataset, sample, progress=progress)
    broken = [(split, *one) for split in dataset.manifest.splits if before.shards for one in before.broken(split)]
    if not broken:
        return Repair((), None, tuple(before.findings))
    try:
        mended = {(split, shard): _mend(dataset, split, shard, verdict) for split, shard, verdict in broken}
        listed = listings([dataset, *older_versions(dataset)[0]])
        aside = _useless(dataset, list(mended.values()), listed)
        actions = tuple(_say_all(dataset, list(mended.values()), aside))
        _refuse_nothing(dataset, mended)
        if dry_run:
            return Repair(actions, None, tuple(before.findings))
        published = _apply(dataset, mended, listed, aside)
    except OSError as error:
        raise WorkError(f"{url} could not be repaired: {error}; run this again") from error
    known = {shard: verdict for shard, verdict in before.verdicts.items() if verdict.sound}
    after = survey(Dataset.open(url), sample, known=known)
    return Repair(actions, published, tuple(after.findings))


def _mend(dataset: Dataset, split: str, shard: Shard, verdict: Verdict) -> _Mended:
    _refuse_silence(dataset, shard, verdict)
    table = read_index(dataset.url, shard)
    if isinstance(table, str):
        made = reindex(dataset, shard)
        if made is None:
            why = f"its index {table} and cannot be made again from the tar"
            return _Mended(split, shard, shard, np.zeros(shard.samples, bool), why=why)
        mended = _whole(dataset, split, shard, made)
        return _Mended(split, shard, mended.after, mended.stays, made, mended.why)
    if verdict.tar:
        return _whole(dataset, split, shard, table)
    with quiet():
        (again,) = verify(dataset.url, shard.name, [shard], 1.0)
    _refuse_silence(dataset, shard, again)
    stays = np.ones(shard.samples, bool)
    stays[list(again.bad)] = False
    return _Mended(split, shard, shard, stays, why="photographs in it cannot be used")


def _refuse_silence(dataset: Dataset, shard: Shard, verdict: Verdict) -> None:
    """Nothing is left out because a store does not answer."""
    if verdict.unread:
        raise WorkError(f"{dataset.shard_url(shard)} could not be read ({verdict.unread}); repair when it answers")


def _whole(dataset: Dataset, split: str, shard: Shard, table: pa.Table) -> _Mended:
    """The rows whose bytes lie where the index says, and what the tar is now."""
    tar = dataset.shard_url(shard)
    try:
        size, checksum, stays = salvage(tar, table)
    except FileNotFoundError:
        return _Mended(split, shard, shard, np.zeros(len(table), bool), why="its tar is missing")
    if (size, checksum) == (shard.bytes, shard.checksum):
        return _Mended(split, shard, shard, stays, why="" if stays.all() else "photographs in it cannot be used")
    after = shard.model_copy(update={"bytes": size, "checksum": checksum})
    return _Mended(split, shard, after, stays, why="bytes of its tar changed")


def salvage(tar: str, table: pa.Table) -> tuple[int, str, NDArray[np.bool_]]:
    """Size and checksum of a tar as it is, and for each row of an index whether its photograph's bytes are right.

    Raises:
        OSError: it is missing, or the store does not answer.
    """
    size = storage.size(tar)
    right = np.zeros(len(table), bool)
    places = zip(*(table.column(name).to_pylist() for name in ("offset", "size", "hash")), strict=True)
    with Stream(tar, size, checksum=True) as stream:
        for row, (start, length, content) in sorted(enumerate(places), key=lambda one: one[1][0]):
            if stream.at <= start and 0 <= length <= LARGEST and start + length <= size:
                stream.go(start)
                right[row] = hashlib.sha256(stream.read(length)).digest() == content
        return size, stream.digest(), right


def _useless(dataset: Dataset, mended: Sequence[_Mended], listed: Mapping[Shard, Sequence[Listed]]) -> list[str]:
    """Tars of ours that changed and of which no version can use anything: they make place for whole ones."""
    names = {one.before.name for one in mended if one.before != one.after and written_here(one.before.name)}
    used = {shard.name for shard in listed if shard.name in names and _is_used(dataset, shard)}
    return sorted(names - used)


def _is_used(dataset: Dataset, shard: Shard) -> bool:
    """Whether the versions that list a shard find a photograph in its tar."""
    table = read_index(dataset.url, shard)
    return isinstance(table, str) or bool(salvage(dataset.shard_url(shard), table)[2].any())


def _refuse_nothing(dataset: Dataset, mended: Mapping[tuple[str, Shard], _Mended]) -> None:
    total = sum(info.samples for info in dataset.manifest.splits.values())
    if sum(one.lost for one in mended.values()) >= total:
        raise WorkError(
            f"not one photograph of {dataset.url} can be used; nothing was changed: restore the dataset from a copy, "
            "or ingest its source again"
        )


def _apply(
    dataset: Dataset,
    mended: Mapping[tuple[str, Shard], _Mended],
    listed: Mapping[Shard, Sequence[Listed]],
    aside: Sequence[str],
) -> DatasetRef | None:
    for one in mended.values():
        if one.index is not None:
            storage.write(storage.join(dataset.url, one.before.index), encode(one.index))
        if one.before != one.after and written_here(one.before.name):
            # The marker of a finished shard must not vouch for what is damaged.
            storage.remove(storage.join(dataset.url, f"{one.before.name.removesuffix('.tar')}_stats.json"))
    for name in aside:
        storage.move(storage.join(dataset.url, name), storage.join(dataset.url, QUARANTINE, name))
    changed = {one.before.name for one in mended.values() if one.lost or one.before != one.after}
    if not changed:
        return None
    damaged = {one.version.digest for shard, where in listed.items() if shard.name in changed for one in where}
    _forget(dataset.url, "identities", "digest", damaged)  # or an ingest would publish one of these again
    _forget(dataset.url, "adopt", "name", changed)  # or an adoption would take a tar for what it was
    return _publish(dataset, mended)


def _forget(url: str, folder: str, field: str, values: set[str]) -> None:
    """Remove the markers in a folder of the dataset's that vouch for something damaged."""
    folder = storage.join(url, FOLDER, folder)
    files = [storage.join(folder, name) for name in storage.names(folder) if name.endswith(".json")]
    with ThreadPoolExecutor(_WORKERS) as pool:
        said = pool.map(lambda file: _said(file, field), files)
        list(pool.map(storage.remove, [file for file, value in zip(files, said, strict=True) if value in values]))


def _said(file: str, field: str) -> str | None:
    try:
        return str(json.loads(storage.read(file))[field])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _publish(dataset: Dataset, mended: Mapping[tuple[str, Shard], _Mended]) -> DatasetRef:
    remains = _Remains(dataset, mended)
    rows = Rows.of(remains)
    stays = [
        one.stays if (one := mended.get((split, remains.before[split, shard]))) else np.ones(shard.samples, bool)
        for split, shard in rows.shards
    ]
    changed = revise(rows, dataset.manifest.classes, {}, np.concatenate(stays), keep_classes=True)
    lost = sum(one.lost for one in mended.values())
    return publish(dataset, changed, f"{lost} damaged photographs of {len(mended)} shards left out")


class _Remains(Dataset):
    """A version without the shards of which nothing stays, and with the tars as they are now."""

    def __init__(self, dataset: Dataset, mended: Mapping[tuple[str, Shard], _Mended]) -> None:
        super().__init__(dataset.url, dataset.digest, dataset.manifest)
        self.before: dict[tuple[str, Shard], Shard] = {}
        """Split and shard as it is now → as the version lists it."""
        for split in dataset.manifest.splits:
            kept = []
            for shard in dataset.shards(split):
                one = mended.get((split, shard))
                if one is None or one.stays.any():
                    now = one.after if one else shard
                    kept.append(now)
                    self.before[split, now] = shard
            self._shards[split] = ShardList.of(kept)


def _say_all(dataset: Dataset, mended: Sequence[_Mended], aside: Sequence[str]) -> Iterator[str]:
    yield from (_say(dataset, one) for one in mended)
    for split, info in dataset.manifest.splits.items():
        if sum(one.lost for one in mended if one.split == split) == info.samples:
            yield f"nothing is left of the split {split}"
    for name in aside:
        tar, to = storage.join(dataset.url, name), storage.join(dataset.url, QUARANTINE, name)
        yield f"{tar} is moved to {to}; older versions miss it"


def _say(dataset: Dataset, one: _Mended) -> str:
    tar, source = dataset.shard_url(one.before), dataset.manifest.source
    parts = []
    if one.index is not None:
        parts.append(f"the index of {tar} is made again from the tar")
    if one.lost:
        count = "all" if one.lost == one.before.samples else f"{one.lost} of {one.before.samples}"
        text = f"{count} photographs of {tar} are left out of {one.split} ({one.why}); to have them back: vit ingest"
        parts.append(f"{text} {source} {dataset.url}")
    elif one.before != one.after:
        parts.append(f"{tar} is listed as it is now ({one.why}, but none of a photograph)")
    return "; ".join(parts)
