"""A dataset's versions: what a URL holds, which shards belong to it, and how a new version is published.

<url>/dataset.json                  pointer to the current version; replaced last, at once: the commit
<url>/_vit/<digest>.json            an immutable version: fields, classes, splits, statistics, origin
<url>/_vit/<digest>.<split>.parquet its shard list
<url>/_vit/index/<digest>.parquet   the index of a shard that a later version edited, or of a tar that others wrote
<url>/<split>/<batch>-00000.tar     samples in WebDataset's layout, beside <batch>-00000.index.parquet and …_stats.json
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
from pydantic import Field, ValidationError

from vitcore import storage
from vitcore.data.dataset.index import SCHEMA, Index, decode, encode
from vitcore.data.dataset.moments import Channels, Moments
from vitcore.data.dataset.shard import SHARDS, Shard, ShardList, Value
from vitcore.errors import RequestError, WorkError
from vitcore.identity import digest

FORMAT = 2
POINTER = "dataset.json"
FOLDER = "_vit"
_VERSION_FILE = re.compile(r"([0-9a-f]{16})\.json")
_READERS = 16  # index files fetched at once: latency of a remote store, not CPU, bounds this


class DatasetRef(Value):
    """A dataset at one version: what flows hand to tasks."""

    url: str
    """Absolute path or URL."""
    digest: str
    """Version, 16 hex digits: covers shards, labels, classes and splits, not the URL."""


class SplitInfo(Value):
    """What a split holds."""

    samples: int
    shards: int
    bytes: int
    """Bytes of its tars."""
    class_counts: tuple[int, ...] = ()
    """Samples of each class, in the order of the manifest's classes; empty without labels."""
    moments: Moments = Moments()
    """Of the photographs that were written for it; those that an edit left out later still count."""


class Manifest(Value):
    """An immutable version of a dataset."""

    format: int = FORMAT
    fields: tuple[str, ...]
    """What every sample has: ``image``, and ``label`` or ``captions`` or both or neither."""
    classes: tuple[str, ...] = ()
    """Class names; a label is a position here."""
    splits: dict[str, SplitInfo]
    mean: Channels
    """Channel means of the training photographs, in [0, 1]."""
    std: Channels
    """Channel deviations of the training photographs, in [0, 1]."""
    source: str
    """What was ingested."""
    settings: dict[str, Any]
    """How it was ingested."""
    rejects: dict[str, int] = Field(default_factory=dict)
    """Photographs left out, by reason."""
    rejects_file: str | None = None
    """Which ones, one JSON object a line; relative to the dataset's URL."""
    excluded: str | None = None
    """List of the photographs that were left out on purpose and stay out; relative to the dataset's URL."""
    parent: str | None = None
    """Digest of the version that this one was made from."""
    change: str = ""
    """What was done to the parent, in words."""
    license: str | None = None
    """Terms of the photographs, as whoever ingested them gave them."""


class Dataset:
    """An opened version of a dataset: two small files are read now, shard lists and indexes when asked for."""

    def __init__(self, url: str, version: str, manifest: Manifest) -> None:
        self.url = url
        self.digest = version
        self.manifest = manifest
        self._shards: dict[str, ShardList] = {}

    @classmethod
    def open(cls, at: str | DatasetRef) -> Dataset:
        """Open the current version at a URL, or the version a reference names.

        Raises:
            RequestError: there is no dataset, or not this version of it.
        """
        if isinstance(at, DatasetRef):
            return cls(at.url, at.digest, read_version(at.url, at.digest))
        url = storage.absolute(at)
        version = current(url)
        if version is None:
            missing = "holds no dataset" if storage.exists(url) else "does not exist"
            raise RequestError(f"{at} {missing} (no {POINTER} there); publish one with: vit ingest SOURCE {at}")
        return cls(url, version, read_version(url, version))

    @classmethod
    def at(cls, url: str) -> Dataset | None:
        """The current version at a URL; None where nothing was published."""
        version = current(url)
        return None if version is None else cls(url, version, read_version(url, version))

    @property
    def ref(self) -> DatasetRef:
        """URL and digest."""
        return DatasetRef(url=self.url, digest=self.digest)

    def require(self, *fields: str) -> None:
        """Ask for what an objective needs.

        Raises:
            RequestError: naming the field that the dataset has not.
        """
        for field in fields:
            if field not in self.manifest.fields:
                have = ", ".join(self.manifest.fields)
                raise RequestError(f"the dataset {self.url} has no {field} (it has: {have}); ingest it with one")

    def split(self, name: str) -> SplitInfo:
        """What a split holds.

        Raises:
            RequestError: there is no such split; the sentence names those there are.
        """
        if name not in self.manifest.splits:
            known = ", ".join(self.manifest.splits)
            raise RequestError(f"the dataset {self.url} has no split {name!r}; it has: {known}")
        return self.manifest.splits[name]

    def shards(self, split: str) -> list[Shard]:
        """The split's shards, in the version's order."""
        return list(self.shard_list(split))

    def shard_list(self, split: str) -> ShardList:
        """`shards` for readers, who look at few of them."""
        self.split(split)
        if split not in self._shards:
            name = storage.join(self.url, FOLDER, f"{self.digest}.{split}.parquet")
            self._shards[split] = ShardList(_table("the shard list", name, "ingest again"))
        return self._shards[split]

    def shard_url(self, shard: Shard) -> str:
        """Where a shard's tar lies."""
        return storage.join(self.url, shard.name)

    def index(self, split: str) -> Index:
        """The split's samples, by column."""
        shards = self.shard_list(split)
        return Index(self._column_loader(shards), shards.samples, lambda at, names: self.shard_index(shards[at], names))

    def shard_index(self, shard: Shard, columns: Sequence[str] | None = None) -> pa.Table:
        """The index file of one shard.

        Raises:
            WorkError: it is missing, damaged, of another length than the version says, or the store does not answer.
        """
        name = storage.join(self.url, shard.index)
        table = _table("the index", name, f"run: vit check {self.url}", columns)
        if table.num_rows != shard.samples:
            raise WorkError(
                f"the index {name} has {table.num_rows} rows, its shard {shard.samples} samples; "
                f"run: vit check {self.url}"
            )
        return table

    def _column_loader(self, shards: Sequence[Shard]) -> Callable[[Sequence[str]], pa.Table]:
        def load(columns: Sequence[str]) -> pa.Table:
            with ThreadPoolExecutor(_READERS) as pool:
                tables = list(pool.map(lambda shard: self.shard_index(shard, columns), shards))
            return pa.concat_tables(tables) if tables else SCHEMA.empty_table().select(list(columns))

        return load


def current(url: str) -> str | None:
    """Digest the pointer at `url` names; None where no dataset was published."""
    try:
        text = storage.read(storage.join(url, POINTER))
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return str(json.loads(text)["digest"])
    except (ValueError, KeyError, TypeError):
        raise RequestError(f"{storage.join(url, POINTER)} is not the pointer of a dataset; give another URL") from None


def versions(url: str) -> list[str]:
    """Digests of all versions at `url`, the current one first."""
    found = [match[1] for name in storage.names(storage.join(url, FOLDER)) if (match := _VERSION_FILE.fullmatch(name))]
    now = current(url)
    return sorted(found, key=lambda version: (version != now, version))


def read_version(url: str, version: str) -> Manifest:
    """One version's manifest.

    Raises:
        RequestError: there is no such version, or a newer release wrote it.
    """
    name = version_file(url, version)
    try:
        tree = json.loads(storage.read(name))
    except (FileNotFoundError, NotADirectoryError):
        raise RequestError(f"the dataset {url} has no version {version}; it has: {_known(url)}") from None
    except ValueError as error:
        raise WorkError(f"the manifest {name} is damaged ({error}); ingest again") from error
    if isinstance(tree, dict) and tree.get("format", 0) > FORMAT:
        raise RequestError(f"{name} has format {tree['format']}; this release reads up to {FORMAT}: upgrade")
    if isinstance(tree, dict) and tree.get("format", FORMAT) < FORMAT:
        raise RequestError(f"{name} has format {tree['format']}, of before the first release; ingest it again")
    try:
        return Manifest.model_validate(tree)
    except ValidationError as error:
        raise WorkError(f"{name} is not a manifest ({error.errors()[0]['msg']}); ingest again") from None


def version_digest(manifest: Manifest, shards: Mapping[str, Sequence[Shard]]) -> str:
    """Digest of a version: its classes and fields, and each split's tars and index rows, wherever they lie."""
    splits = {
        split: [[shard.samples, shard.checksum, shard.index_digest] for shard in listed]
        for split, listed in shards.items()
    }
    return digest({"format": FORMAT, "fields": manifest.fields, "classes": manifest.classes, "splits": splits})


def publish(
    url: str,
    manifest: Manifest,
    shards: Mapping[str, Sequence[Shard]],
    *,
    expected: str | None = None,
    identity: str | None = None,
) -> DatasetRef:
    """Publish a version: shard lists, then the manifest, then the pointer. The shards must already be there.

    Publishing a version that exists already changes nothing but the pointer.

    Args:
        url: of the dataset.
        manifest: the version.
        shards: of each split.
        expected: digest that the pointer named when the work on this version began; None: there was none.
        identity: of the ingest, by which `find` will know the version.

    Raises:
        WorkError: the pointer names another version by now.
    """
    url = storage.absolute(url)
    version = version_digest(manifest, shards)
    name = version_file(url, version)
    if not storage.exists(name):
        for split, listed in shards.items():
            table = pa.Table.from_pylist([shard.model_dump() for shard in listed], schema=SHARDS)
            storage.write(storage.join(url, FOLDER, f"{version}.{split}.parquet"), encode(table))
        storage.write(name, manifest.model_dump_json(indent=1).encode())
    if identity is not None:
        storage.write(_identity_file(url, identity), json.dumps({"digest": version}).encode())
    point(url, version, expected=expected)
    return DatasetRef(url=url, digest=version)


def point(url: str, version: str, *, expected: str | None) -> None:
    """Make a published version the current one, if `expected` (or this very version) still is.

    Raises:
        WorkError: somebody else published meanwhile.
    """
    name = storage.join(url, POINTER)
    tag = storage.tag(name)  # before the reading: whoever writes between the two is found out
    now = current(url)
    if now == version:
        return
    data = json.dumps({"format": FORMAT, "digest": version}).encode()
    if now != expected or not storage.replace(name, data, tag):
        raise WorkError(
            f"somebody else published a version at {url} meanwhile; run this again: what was written is found again"
        )


def find(url: str, identity: str) -> DatasetRef | None:
    """The version that an ingest of this identity published at `url`, if it is still there."""
    url = storage.absolute(url)
    try:
        version = str(json.loads(storage.read(_identity_file(url, identity)))["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return DatasetRef(url=url, digest=version) if storage.exists(version_file(url, version)) else None


def version_file(url: str, version: str) -> str:
    """Where a version's manifest lies."""
    return storage.join(url, FOLDER, f"{version}.json")


def _table(what: str, url: str, remedy: str, columns: Sequence[str] | None = None) -> pa.Table:
    try:
        data = storage.read(url)
    except (FileNotFoundError, NotADirectoryError):
        raise WorkError(f"{what} {url} is missing; {remedy}") from None
    except OSError as error:  # nothing is known of the file: no remedy for damage
        raise WorkError(f"{what} is out of reach: {error}") from error
    try:
        return decode(data, columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise WorkError(f"{what} {url} is missing or damaged ({error}); {remedy}") from error


def _identity_file(url: str, identity: str) -> str:
    return storage.join(url, FOLDER, "identities", f"{identity}.json")


def _known(url: str) -> str:
    return ", ".join(versions(url)) or "none"
