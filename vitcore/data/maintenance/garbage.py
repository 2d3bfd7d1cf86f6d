"""Removing what no version needs: shards of abandoned ingests, versions that are not to be kept, what the killed left.

    found = find_garbage("data/birds", keep=3)
    remove(found)

Only files whose names this project gives are ever removed, and only once nothing has touched them for a day: an ingest
that runs meanwhile is not hurt. Tars that others wrote are never removed.

Killed at any instant, the same call goes on: a version's manifest goes first, then what only it needed.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from vitcore import storage
from vitcore.data.dataset import manifest
from vitcore.data.dataset.manifest import FOLDER, POINTER, Dataset, DatasetRef
from vitcore.data.dataset.shard import Shard
from vitcore.data.ingest.shards import SCRATCH
from vitcore.data.maintenance.verify import written_here
from vitcore.data.teaching.outputs import FILE, PLACE
from vitcore.errors import RequestError, WorkError
from vitcore.identity import digest
from vitcore.storage import Entry

DAY = 86400.0
_WORKERS = 16  # requests to a store at once
_HEX = "[0-9a-f]{16}"
_KINDS = {
    "version": re.compile(rf"{FOLDER}/(?P<version>{_HEX})\.json"),
    "list of photographs left out": re.compile(rf"{FOLDER}/(?P<version>{_HEX})\.excluded\.parquet"),
    "shard list": re.compile(rf"{FOLDER}/(?P<version>{_HEX})\.[^/.]+\.parquet"),
    "overlap": re.compile(rf"{FOLDER}/(?P<version>{_HEX})\.[^/.]+\.overlap\.[^/]+\.(json|parquet)"),
    "index": re.compile(rf"{FOLDER}/index/[0-9a-f]{{16}}-{_HEX}\.parquet"),
    "identity": re.compile(rf"{FOLDER}/identities/[^/]+\.json"),
    "ledger": re.compile(rf"{FOLDER}/ledger/(?P<source>{_HEX})\.parquet"),
    "adopted tar": re.compile(rf"{FOLDER}/adopt/(?P<job>{_HEX})\.(json|parquet)"),
    "labels of adopted tars": re.compile(rf"{FOLDER}/adopt/{_HEX}\.labels\.json"),
    "rejects": re.compile(rf"{FOLDER}/[^/]+\.rejects\.jsonl"),
    "quarantined tar": re.compile(rf"{FOLDER}/quarantine/[^/]+/[^/]+\.tar"),
    "teacher's outputs": re.compile(
        rf"{FOLDER}/{PLACE}/(?P<outputs>{_HEX})/(outputs\.json|[0-9]{{8,}}-[0-9]{{8,}}\.safetensors)"
    ),
    "claim": re.compile(rf"{re.escape(POINTER)}\.(claims/[0-9a-f]+|probe-[0-9a-f]+)"),
    "shard": re.compile(r"(?P<stem>[^/]+/[0-9a-f]{8}-[0-9]{5,})(?P<part>\.tar|\.index\.parquet|_stats\.json)"),
}
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


@dataclass(frozen=True, slots=True)
class Trash:
    """A file that no kept version needs, or the folder of a shard that was never finished."""

    path: str
    """Relative to the dataset's URL."""
    bytes: int
    kind: str
    """``version``, ``shard``, ``index`` …"""


@dataclass(frozen=True)
class Garbage:
    """What can be removed."""

    url: str
    current: str
    """Digest of the version that the pointer named."""
    kept: tuple[str, ...]
    """Versions that stay, the current one first."""
    versions: tuple[str, ...]
    """Versions that go."""
    trash: tuple[Trash, ...]
    """In the order in which it is to be removed."""

    @property
    def bytes(self) -> int:
        """Space that is won."""
        return sum(one.bytes for one in self.trash)


def find_garbage(url: str, *, keep: int | None = None, keep_days: float | None = None, grace_s: float = DAY) -> Garbage:
    """What no version needs.

    Args:
        url: of the dataset.
        keep: versions to keep: the current one and its nearest ancestors; with `keep_days` what either keeps stays.
            Default: all.
        keep_days: keep the versions published in that many days, and the current one.
        grace_s: seconds that a file must have been left alone before it is removed.

    Raises:
        RequestError: the URL holds no dataset, or none of its versions would be kept.
        WorkError: a kept version's own files are damaged, so that nobody knows what it needs.
    """
    if keep is not None and keep < 1:
        raise RequestError("at least the current version is kept: give 1 or more")
    dataset = Dataset.open(url)
    url = dataset.url
    every = [dataset, *_others(dataset)]
    kept = [one for one in every if _is_kept(one, dataset, every, keep, keep_days, grace_s)]
    gone = tuple(one.digest for one in every if one not in kept)
    needs = _Needs(kept)
    entries = {entry.path: entry for entry in storage.walk(url) if entry.utf8}
    found = [*_claimed(url, needs, entries), *_hidden(url)]
    with ThreadPoolExecutor(_WORKERS) as pool:
        ages = pool.map(lambda one: _age(storage.join(url, one.path)), found)
        old = [one for one, age in zip(found, ages, strict=True) if age is not None and age >= grace_s]
    trash = _whole_shards(found, old)
    order = ("identity", "version")  # what finds a version, then what opens it, then the rest
    trash.sort(key=lambda one: (order.index(one.kind) if one.kind in order else len(order), one.path))
    return Garbage(url, dataset.digest, tuple(one.digest for one in kept), gone, tuple(trash))


def remove(found: Garbage) -> None:
    """Remove what was found.

    Raises:
        WorkError: another version was published meanwhile, or a store does not answer.
    """
    if manifest.current(found.url) != found.current:
        raise WorkError(f"somebody published a version at {found.url} meanwhile; nothing was removed: run this again")
    try:
        first = [one for one in found.trash if one.kind in ("identity", "version")]
        for one in first:
            storage.remove(storage.join(found.url, one.path))
        with ThreadPoolExecutor(_WORKERS) as pool:
            rest = found.trash[len(first) :]
            list(pool.map(lambda one: storage.remove(storage.join(found.url, one.path)), rest))
    except OSError as error:
        raise WorkError(f"not everything could be removed from {found.url} ({error}); run this again") from error


def _others(dataset: Dataset) -> list[Dataset]:
    return [
        Dataset.open(DatasetRef(url=dataset.url, digest=version))
        for version in manifest.versions(dataset.url)
        if version != dataset.digest
    ]


def _is_kept(
    one: Dataset, now: Dataset, every: Sequence[Dataset], keep: int | None, keep_days: float | None, grace_s: float
) -> bool:
    if keep is None and keep_days is None:
        return True
    age = _age(manifest.version_file(one.url, one.digest))
    if age is None or age < grace_s:  # it may be about to become the current one
        return True
    by_number = keep is not None and one.digest in _line(now, every, keep)
    return by_number or (keep_days is not None and age < keep_days * DAY) or one is now


def _line(now: Dataset, every: Sequence[Dataset], most: int) -> list[str]:
    """The current version and its nearest ancestors."""
    parents = {one.digest: one.manifest.parent for one in every}
    line: list[str] = []
    version: str | None = now.digest
    while version in parents and version not in line and len(line) < most:
        line.append(version)
        version = parents[version]
    return line


class _Needs:
    """What versions need, by path."""

    def __init__(self, versions: Sequence[Dataset]) -> None:
        self._versions = {one.digest for one in versions}
        self._sources = {digest(one.manifest.source) for one in versions}
        self._named = {file for one in versions for file in (one.manifest.rejects_file, one.manifest.excluded)}
        self._indexes: set[str] = set()
        self._stems: set[str] = set()
        self._tars: set[tuple[str, str]] = set()
        self._taught: dict[str, bool] = {}
        for version in versions:
            for split in version.manifest.splits:
                for shard in version.shards(split):
                    self._add(shard)

    def _add(self, shard: Shard) -> None:
        self._indexes.add(shard.index)
        if written_here(shard.name):
            self._stems.add(shard.name.removesuffix(".tar"))
        else:
            self._tars.add((shard.name, shard.checksum))

    def want(self, url: str, path: str, kind: str, match: re.Match[str]) -> bool:
        """Whether a file of ours must stay."""
        match kind:
            case "version" | "shard list" | "overlap":
                return match["version"] in self._versions
            case "index":
                return path in self._indexes
            case "shard":
                return match["stem"] in self._stems
            case "ledger":
                return match["source"] in self._sources
            case "rejects":
                return path in self._named
            case "list of photographs left out":
                return path in self._named or match["version"] in self._versions  # of a split of that name
            case "identity":
                return _field(url, path, "digest") in self._versions
            case "adopted tar":
                marker = f"{FOLDER}/adopt/{match['job']}.json"
                return (_field(url, marker, "name"), _field(url, marker, "checksum")) in self._tars
            case "labels of adopted tars":
                return bool(self._tars)
            case "teacher's outputs":
                return self._teaches(url, match["outputs"])
            case _:
                return False

    def _teaches(self, url: str, identity: str) -> bool:
        """Whether a teacher's outputs are of a kept version; looked up once for all their files."""
        if identity not in self._taught:
            said = _field(url, f"{FOLDER}/{PLACE}/{identity}/{FILE}", "dataset")
            self._taught[identity] = said in self._versions
        return self._taught[identity]


def _claimed(url: str, needs: _Needs, entries: dict[str, Entry]) -> list[Trash]:
    """Files of ours that nothing needs, however young."""
    ours = [(path, kind, match) for path in entries for kind, match in _known(path)]
    with ThreadPoolExecutor(_WORKERS) as pool:
        wanted = pool.map(lambda one: needs.want(url, *one), ours)
        found = [one for one, want in zip(ours, wanted, strict=True) if not want]
    adopted = any(kind == "adopted tar" for _, kind, _ in ours)
    return [
        Trash(path, entries[path].size, kind)
        for path, kind, match in found
        if not (adopted and kind == "shard" and match["part"] == ".tar" and _is_alone(match["stem"], entries))
    ]


def _known(path: str) -> Iterator[tuple[str, re.Match[str]]]:
    for kind, shape in _KINDS.items():
        match = shape.fullmatch(path)
        if match:
            yield kind, match
            return


def _is_alone(stem: str, entries: Iterable[str]) -> bool:
    """Whether nothing beside a tar says that it was written here: others may have named theirs like ours."""
    return f"{stem}.index.parquet" not in entries and f"{stem}_stats.json" not in entries


def _hidden(url: str) -> Iterator[Trash]:
    """What killed writers left on a local disk: unfinished files, and folders that shards grew in."""
    if not storage.is_local(url):
        return
    root = storage.local_path(url)
    folders = [root, *(one for one in root.iterdir() if one.is_dir() and not one.name.startswith("."))]
    folders += [one for one in (root / FOLDER).rglob("*") if one.is_dir()]
    for folder in folders:
        for one in folder.iterdir():
            path = str(one.relative_to(root))
            if one.name.startswith(SCRATCH) and one.is_dir():
                yield Trash(path, sum(file.stat().st_size for file in one.rglob("*")), "unfinished shard")
            elif _TEMPORARY.fullmatch(one.name) and _is_place_of_ours(path, one.name):
                yield Trash(path, one.stat().st_size, "unfinished file")


def _is_place_of_ours(path: str, name: str) -> bool:
    """Whether the file that a temporary file was to become is one of ours."""
    becomes = path.removesuffix(name) + name[1:].rsplit(".", 2)[0]
    return becomes == POINTER or any(True for _ in _known(becomes))


def _whole_shards(found: Sequence[Trash], old: Sequence[Trash]) -> list[Trash]:
    """What is old enough; of a shard all files or none, since an ingest that goes on may have come to it again."""
    stems = {one.path: match["stem"] for one in found if (match := _KINDS["shard"].fullmatch(one.path))}
    young = {stems[path] for path in stems.keys() - {one.path for one in old}}
    return [one for one in old if stems.get(one.path) not in young]


def _age(url: str) -> float | None:
    """Seconds since a file, or anything in a folder, was changed; None where nobody knows, or it is gone."""
    try:
        if storage.is_local(url):
            path = storage.local_path(url)
            return time.time() - max(one.stat().st_mtime for one in (path, *path.rglob("*")))
        changed = storage.modified(url)
        return None if changed is None else time.time() - changed
    except OSError:
        return None


def _field(url: str, path: str, name: str) -> object:
    """A field of a small JSON file; None where it cannot be read."""
    try:
        return json.loads(storage.read(storage.join(url, path)))[name]
    except (OSError, ValueError, KeyError, TypeError):
        return None
