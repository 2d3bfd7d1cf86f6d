"""One tar against what versions say of it: whether it is there and whole, and whether each index fits it.

The tar is read once from end to end, however many splits and versions list it, and never held in memory: checksum, the
place of every photograph, and, of those picked, the bytes, a decoder and the size in pixels.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vitcore import storage
from vitcore.data.corpus.tarwalk import Damage, Member, Stream, walk
from vitcore.data.dataset.index import SCHEMA, decode, rows_digest
from vitcore.data.dataset.manifest import FOLDER
from vitcore.data.dataset.shard import Shard
from vitcore.data.ingest.convert import Form, UnfitError, convert

QUARANTINE = f"{FOLDER}/quarantine"
"""Below a dataset's URL: where `vitcore.data.maintenance.repair` moves tars of which nothing can be used."""
LARGEST = 1 << 27
"""Bytes of a photograph; an index that claims more is not believed."""
_OWN = re.compile(r"[^/]+/[0-9a-f]{8}-[0-9]{5,}\.tar")
_WHOLE = Form(resize=None, quality=92, max_pixels=1 << 26)  # what is decoded, and nothing brought to another form
_COLUMNS = ("key", "extension", "offset", "size", "label", "width", "height", "hash")


class Tally(NamedTuple):
    """What an index says of its samples, as far as the whole version is judged by it; arrays [n]."""

    contents: NDArray[np.uint64]
    """The beginning of each content's SHA-256."""
    groups: NDArray[np.uint64]
    """A hash of each group's name."""
    labels: NDArray[np.int64]
    wordless: int
    """Samples without a caption that says something."""


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a shard: nothing, where all is None or empty."""

    unread: str | None = None
    """Why the store did not answer: then nothing is known."""
    tar: str | None = None
    """What is wrong with the tar, as the end of a sentence."""
    index: str | None = None
    """What is wrong with the index."""
    bad: Mapping[int, str] = field(default_factory=dict)
    """Rows of photographs that cannot be used, and why; tar and index are as they were published."""
    tally: Tally | None = None
    """Of a shard whose index is sound."""
    stale: int = 0
    """Samples whose label in the tar is not the one in the index: edited since."""
    samples: int = 0
    """In the tar, whoever lists them; counted where we wrote it."""

    @property
    def sound(self) -> bool:
        """Whether it can be trained on."""
        return not (self.unread or self.tar or self.index or self.bad)


def written_here(name: str) -> bool:
    """Whether a shard's name is one that an ingest gives, below the dataset's URL; else others wrote the tar."""
    return _OWN.fullmatch(name) is not None


def verify(url: str, name: str, shards: Sequence[Shard], fraction: float) -> list[Verdict]:
    """Look at one tar and at what is said of it.

    Args:
        url: of the dataset.
        name: the shards' name.
        shards: the different things that splits and versions say of this tar.
        fraction: of the photographs to look into, at least one a shard.

    Returns:
        A verdict for each of `shards`.
    """
    tar = storage.join(url, name)
    try:
        tables = [read_index(url, shard) for shard in shards]
        size = storage.size(tar)
        expected = [
            _Expected(table, fraction, own=written_here(name)) if isinstance(table, pa.Table) else None
            for table in tables
        ]
        checksum = None
        if any(shard.bytes == size for shard in shards):
            checksum = _read(tar, size, [one for one in expected if one is not None])
    except FileNotFoundError:
        return [Verdict(tar=_missing(url, name), index=_problem(table)) for table in tables]
    except OSError as error:
        return [Verdict(unread=str(error))] * len(shards)
    verdicts = []
    for shard, table, one in zip(shards, tables, expected, strict=True):
        tar_problem = _compare(shard, size, checksum)
        if tar_problem or one is None:
            verdicts.append(Verdict(tar=tar_problem, index=_problem(table)))
        else:
            verdicts.append(Verdict(bad=one.result(), tally=_tally(table), stale=one.stale, samples=one.samples))
    return verdicts


def read_index(url: str, shard: Shard) -> pa.Table | str:
    """A shard's index, or what is wrong with it.

    Raises:
        OSError: the store does not answer.
    """
    try:
        data = storage.read(storage.join(url, shard.index))
    except FileNotFoundError:
        return "is missing"
    try:
        table = decode(data)
    except (OSError, pa.ArrowException) as error:
        return f"is damaged ({str(error).splitlines()[0]})"
    if not table.schema.equals(SCHEMA) or table.column("hash").null_count:
        return "has not the columns of an index"
    return table if rows_digest(table) == shard.index_digest else "is not the one that was published"


def look_into(data: bytes, row: Mapping[str, object]) -> str | None:
    """Why a photograph cannot be used; None when it can."""
    if hashlib.sha256(data).digest() != row["hash"]:
        return "its bytes are not the ones in the index"
    try:
        seen = convert(data, _WHOLE)
    except UnfitError as error:
        return f"cannot be decoded ({error})"
    size = seen.original_width, seen.original_height
    return None if size == (row["width"], row["height"]) else f"is {size[0]} by {size[1]} pixels, unlike its index"


class _Expected:
    """The rows of one index, ticked off as the tar goes by."""

    def __init__(self, table: pa.Table, fraction: float, *, own: bool) -> None:
        self._columns = {name: table.column(name).to_pylist() for name in _COLUMNS}
        keys, offsets = self._columns["key"], self._columns["offset"]
        self._waiting = {offset: row for row, offset in enumerate(offsets)}
        self._picked = _pick(len(table), fraction)
        self._bad = {
            row: "lies where another one does" for row, offset in enumerate(offsets) if self._waiting[offset] != row
        }
        self._labels = dict(zip(keys, self._columns["label"], strict=True)) if own else {}
        self.stale = 0
        self.samples = 0

    def wants(self, member: Member) -> bool:
        """Whether the member's bytes shall be read."""
        row = self._waiting.get(member.offset)
        picked = row is not None and row in self._picked and member.size == self._columns["size"][row] <= LARGEST
        return picked or (bool(self._labels) and member.name.endswith(".cls") and member.size < 20)

    def see(self, member: Member, data: bytes) -> None:
        """Compare a member with what is expected at its place."""
        key, _, extension = member.name.rpartition(".")
        if self._labels:
            self.samples += extension == "json"
            if extension == "cls" and data:
                self.stale += self._labels.get(key, -1) >= 0 and data.strip() != b"%d" % self._labels[key]
        row = self._waiting.pop(member.offset, None)
        if row is None:
            return
        said = {name: values[row] for name, values in self._columns.items()}
        if not member.regular or (member.name, member.size) != (f"{said['key']}.{said['extension']}", said["size"]):
            self._bad[row] = "is another member of the tar"
        elif said["size"] > LARGEST:
            self._bad[row] = f"has more than {LARGEST} bytes"
        elif row in self._picked and (problem := look_into(data, said)):
            self._bad[row] = problem

    def result(self) -> dict[int, str]:
        """Rows that cannot be used, once the tar went by."""
        return self._bad | dict.fromkeys(self._waiting.values(), "is not at its place in the tar")


def _read(tar: str, size: int, expected: Sequence[_Expected]) -> str:
    """Let a tar go by; its checksum."""
    with Stream(tar, size, checksum=True) as stream:
        for member in walk(stream):
            if isinstance(member, Damage):
                continue  # of an adopted tar, perhaps: what counts is whether the indexed photographs are there
            data = stream.read(member.size) if any(one.wants(member) for one in expected) else b""
            for one in expected:
                one.see(member, data)
        return stream.digest()


def _compare(shard: Shard, size: int, checksum: str | None) -> str | None:
    if size != shard.bytes:
        return f"has {size} bytes instead of {shard.bytes}"
    return None if checksum == shard.checksum else "has another checksum than was published: bytes changed"


def _missing(url: str, name: str) -> str:
    aside = storage.join(url, QUARANTINE, name) if written_here(name) else None
    return f"was damaged and is set aside as {aside}" if aside and storage.exists(aside) else "is missing"


def _problem(table: pa.Table | str) -> str | None:
    return table if isinstance(table, str) else None


def _pick(count: int, fraction: float) -> frozenset[int]:
    """A sample that is the same each time, spread over the shard."""
    chosen = min(count, max(1, math.ceil(fraction * count)))
    return frozenset(random.Random(count).sample(range(count), chosen))  # noqa: S311  (no secret depends on it)


def _tally(table: pa.Table) -> Tally:
    hashes = np.frombuffer(b"".join(table.column("hash").to_pylist()), np.uint64).reshape(-1, 4)
    names = b"".join(
        hashlib.blake2b(str(group).encode(), digest_size=8).digest() for group in table.column("group").to_pylist()
    )
    said = table.column("captions").to_pylist()
    return Tally(
        contents=hashes[:, 0].copy(),
        groups=np.frombuffer(names, np.uint64),
        labels=table.column("label").to_numpy(),
        wordless=sum(not any(one and one.strip() for one in captions or ()) for captions in said),
    )
