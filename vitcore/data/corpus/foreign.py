"""The samples of a tar that somebody else wrote, in WebDataset's or img2dataset's way, by one walk over its members.

A sample is a run of members that share a key: the path up to the first dot of the file's name. It is taken whole or not
at all: what is damaged, cut off, said twice or hidden behind a link is left out with a reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from vitcore import storage
from vitcore.data.corpus import cells
from vitcore.data.corpus.cells import BrokenCellError
from vitcore.data.corpus.listing import Reject
from vitcore.data.corpus.tarsets import Tar
from vitcore.data.corpus.tarwalk import Damage, Member, Stream, walk
from vitcore.data.ingest_config import TarConfig
from vitcore.errors import RequestError

SAMPLES = pa.schema(
    [
        ("key", pa.string()),  # name of the members, up to the first dot of the file's name
        ("extension", pa.string()),  # of the image: the rest of its member's name
        ("offset", pa.int64()),  # of the image's data in the tar, in bytes
        ("size", pa.int64()),
        ("class", pa.string()),  # name or number, as the tar spells it; null: none
        ("captions", pa.list_(pa.string())),
        ("group", pa.string()),
        ("split", pa.string()),
        ("extra", pa.string()),
    ]
)
"""Columns of a scanned tar: a row a sample, in its order."""

_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_GZIP = b"\x1f\x8b"
_TEXT_LIMIT = 1 << 20  # bytes of a label, a caption or a JSON
_IMAGE_LIMIT = 1 << 27  # bytes of an image
_FIELD = "json."
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_LABELS = ("json.class", "cls", "label", "json.label")
_CAPTIONS = ("json.captions", "txt", "caption", "json.caption")
_OWN = frozenset({"key", "status", "error_message", "width", "height"})  # of img2dataset; said by the index
_BATCH = 4096  # rows turned into columns at a time


class Image(NamedTuple):
    """The image of a sample."""

    extension: str
    offset: int
    size: int
    data: bytes
    """Empty unless it was asked for."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A whole sample of a tar."""

    key: str
    image: Image
    label: str | None
    captions: list[str]
    group: str | None
    split: str | None
    extra: str | None

    def row(self) -> dict[str, Any]:
        """The sample as a row of `SAMPLES`."""
        return {
            "key": self.key,
            "extension": self.image.extension,
            "offset": self.image.offset,
            "size": self.image.size,
            "class": self.label,
            "captions": self.captions,
            "group": self.group,
            "split": self.split,
            "extra": self.extra,
        }


def split_name(member: str) -> tuple[str, str] | None:
    """Key and extension of a member: ``a.b/c.seg.png`` is ``a.b/c`` and ``seg.png``; None for one of no sample."""
    match = _NAME.fullmatch(member)
    return (match[1], match[2]) if match else None


def scan(tar: Tar, config: TarConfig) -> tuple[pa.Table, list[Reject]]:
    """List the samples of one tar without reading its images.

    Args:
        tar: uncompressed.
        config: what its members mean.

    Returns:
        A table of the schema `SAMPLES`, and what was left out.

    Raises:
        OSError: it cannot be read.
        RequestError: it is compressed.
    """
    batches, rows, rejects = [], [], []
    with Stream(tar.url, tar.size) as stream:
        for found in samples(stream, tar, config, images=False):
            if isinstance(found, Reject):
                rejects.append(found)
                continue
            rows.append(found.row())
            if len(rows) == _BATCH:
                batches.append(pa.RecordBatch.from_pylist(rows, schema=SAMPLES))
                rows = []
    batches.append(pa.RecordBatch.from_pylist(rows, schema=SAMPLES))
    table = pa.Table.from_batches(batches)
    return table, rejects


def samples(stream: Stream, tar: Tar, config: TarConfig, *, images: bool) -> Iterator[Sample | Reject]:
    """The samples of a tar and what is left out of it, in order.

    Args:
        stream: the tar, at its beginning.
        tar: what it is called.
        config: what its members mean.
        images: whether the images' bytes are wanted.

    Raises:
        RequestError: it is compressed.
    """
    if storage.read_range(tar.url, 0, len(_GZIP)) == _GZIP:
        raise RequestError(f"{tar.url} is compressed, whatever its name says; decompress it, or name it .tar.gz")
    reading = _Reading(tar, config, images)
    group: _Group | None = None
    seen: set[str] = set()
    damage: Damage | None = None  # just before
    lost: str | None = None  # key of the sample that it cut
    for found in walk(stream):
        if isinstance(found, Damage):
            if group is not None:
                yield reading.reject(group, found.what)
                lost = group.key
            group, damage = None, found
            continue
        named = split_name(found.name)
        if named is None:
            continue  # hidden files, folders' own metadata, files without extension: of no sample
        key, extension = named
        if key == lost:  # the rest of it
            damage = None
            continue
        lost = None
        if group is None or group.key != key:
            if group is not None:
                yield reading.finish(group)
            problem = "its key came before in the tar" if key in seen else None
            group, damage = _Group(key, damage.what if damage else problem), None
            seen.add(key)
        reading.add(group, extension, found, stream)
    if group is not None:
        yield reading.finish(group)
    elif damage is not None and not seen:
        yield Reject(tar.name, damage.what)


@dataclass(slots=True)
class _Group:
    """The members of a sample, as far as they were seen."""

    key: str
    problem: str | None
    names: set[str] = field(default_factory=set)
    texts: dict[str, bytes] = field(default_factory=dict)
    image: Image | None = None
    rank: tuple[int, int] = (0, 0)


class _Reading:
    """What the members of one tar mean."""

    def __init__(self, tar: Tar, config: TarConfig, images: bool) -> None:
        self._tar = tar
        self._config = config
        self._images = images
        self._ranks = {extension.lower(): rank for rank, extension in enumerate(config.image)}
        self._labels = (config.label,) if config.label else _LABELS
        self._captions = (config.caption,) if config.caption else _CAPTIONS
        named = {*self._labels, *self._captions}
        self._texts = {"json", *(name for name in named if not name.startswith(_FIELD))}
        self._said = _OWN | {name.removeprefix(_FIELD) for name in named if name.startswith(_FIELD)}

    def add(self, group: _Group, extension: str, member: Member, stream: Stream) -> None:
        """Keep of a member what its sample needs."""
        if extension in group.names:
            group.problem = group.problem or "it has a member twice"
        group.names.add(extension)
        lower = extension.lower()
        rank = self._rank(lower)
        if rank is None and lower not in self._texts:
            return
        problem = _unsafe(member, _TEXT_LIMIT if rank is None else _IMAGE_LIMIT)
        if problem:
            group.problem = group.problem or problem
        elif rank is None:
            group.texts[lower] = stream.read(member.size)
        elif group.image is None or rank < group.rank:
            data = stream.read(member.size) if self._images else b""
            group.image, group.rank = Image(extension, member.offset, member.size, data), rank

    def finish(self, group: _Group) -> Sample | Reject:
        """The sample that a run of members makes."""
        if group.problem:
            return self.reject(group, group.problem)
        if group.image is None:
            return self.reject(group, "no image")
        try:
            about = _about(group.texts.get("json"))
            return Sample(
                key=group.key,
                image=group.image,
                label=self._label(group.texts, about),
                captions=self._caption_list(group.texts, about),
                group=_field(about, self._config.group),
                split=self._split(about),
                extra=cells.metadata({name: value for name, value in about.items() if name not in self._said}),
            )
        except BrokenCellError as error:
            return self.reject(group, str(error))

    def reject(self, group: _Group, reason: str) -> Reject:
        """What leaving a sample out is called."""
        return Reject(f"{self._tar.name}/{shown(group.key)}", reason)

    def _rank(self, extension: str) -> tuple[int, int] | None:
        """How much a member is the sample's image: by its whole extension first, else by the end of it."""
        if extension in self._ranks:
            return 0, self._ranks[extension]
        last = extension.rsplit(".", 1)[-1]
        return (1, self._ranks[last]) if last in self._ranks else None

    def _label(self, texts: Mapping[str, bytes], about: Mapping[str, Any]) -> str | None:
        for name in self._labels:
            cell = _cell(texts, about, name)
            if isinstance(cell, (list, dict)) and not self._config.label:
                continue  # a field that happens to have a usual name
            found = cells.label(cell)
            if found is None:
                continue
            if not _INTEGER.fullmatch(found):
                return found
            return str(int(found)) if int(found) >= 0 else None  # WebDataset's own sets say -1 where there is none
        return None

    def _caption_list(self, texts: Mapping[str, bytes], about: Mapping[str, Any]) -> list[str]:
        problem: BrokenCellError | None = None
        for name in self._captions:
            try:
                found = cells.captions(_cell(texts, about, name))
            except BrokenCellError as error:
                problem = problem or error
                continue
            if found:
                return found
        if problem:
            raise problem
        return []

    def _split(self, about: Mapping[str, Any]) -> str | None:
        if self._config.split == "auto":
            return self._tar.split
        return cells.split(_field(about, self._config.split)) if self._config.split != "hash" else None


def _unsafe(member: Member, limit: int) -> str | None:
    if not member.regular:
        return "a member is a link, a device or a sparse file"
    if member.size > limit:
        return f"a member has more than {limit} bytes"
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "its name leaves the tar"
    try:
        member.name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    return None


def _about(data: bytes | None) -> Mapping[str, Any]:
    try:
        about = json.loads(data) if data is not None else {}
    except (ValueError, RecursionError):
        raise BrokenCellError("its .json cannot be read") from None
    return about if isinstance(about, dict) else {}


def _field(about: Mapping[str, Any], name: str | None) -> str | None:
    return cells.label(about.get(name.removeprefix(_FIELD)), name) if name else None


def _cell(texts: Mapping[str, bytes], about: Mapping[str, Any], name: str) -> Any:
    return about.get(name.removeprefix(_FIELD)) if name.startswith(_FIELD) else texts.get(name)


def shown(key: str) -> str:
    """A key as it may stand in a report, whatever its bytes."""
    return key.encode("utf-8", "backslashreplace").decode()
