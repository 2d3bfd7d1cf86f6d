"""A tar that somebody else wrote, walked once from front to back, whatever is in it and whatever happened to it.

Only headers are believed, and only those whose checksum fits. Where one is damaged the walk goes on from the next that
is whole; where the tar ends too early it says so. Nothing is ever unpacked.

The format: POSIX.1-1988 (ustar), POSIX.1-2001 (pax) and GNU's long names, sizes and sparse files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple

from vitcore import storage
from vitcore.data.ingest.tar import BLOCK

_PIECE = 1 << 23  # bytes read at once
_NAME_LIMIT = 1 << 20  # bytes of an extended header; longer ones are no name
_ZEROS = bytes(BLOCK)
_REGULAR, _SPARSE = b"0\x007", b"S"
_WITHOUT_DATA = b"123456"  # links, devices, folders, pipes: whatever size they claim
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"xX", b"g"


class Member(NamedTuple):
    """A file in a tar, whose bytes are all there."""

    name: str
    """Not UTF-8: with surrogates in it."""
    offset: int
    """Of its data, in bytes."""
    size: int
    regular: bool
    """Whether the bytes at its offset are the file's: not so for links, devices and sparse files."""


class Damage(NamedTuple):
    """Where a tar is broken: some member lies there that nobody can name."""

    at: int
    what: str


class Stream:
    """The bytes of a file in their order, skipped or read; remote ones come in pieces, one ahead of its use.

    Args:
        url: of the file.
        size: its bytes.
        checksum: whether to take the SHA-256 of everything, which means that nothing is skipped unread.
    """

    def __init__(self, url: str, size: int, *, checksum: bool = False) -> None:
        self.size = size
        self.at = 0
        """Bytes behind us."""
        self._url = url
        self._hash = hashlib.sha256() if checksum else None
        # Who skips from header to header wants no more than these; who reads everything, everything.
        ahead = 1 << 16 if checksum else 1 << 12
        self._file = storage.local_path(url).open("rb", buffering=ahead) if storage.is_local(url) else None
        self._pool = None if self._file else ThreadPoolExecutor(1)
        self._piece, self._from = b"", 0
        self._next: tuple[int, Future[bytes]] | None = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._file:
            self._file.close()
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def read(self, count: int) -> bytes:
        """The next bytes; fewer where the file ends."""
        count = min(count, self.size - self.at)
        data = self._file.read(count) if self._file else self._fetch(count)
        if len(data) < count:
            raise OSError(f"{self._url} became shorter while it was read")
        self.at += count
        if self._hash:
            self._hash.update(data)
        return data

    def go(self, to: int) -> None:
        """Go forward to a byte, at most to the end."""
        to = min(to, self.size)
        if self._hash:
            while self.at < to:
                self.read(min(_PIECE, to - self.at))
        elif self._file and to != self.at:
            self._file.seek(to)
        self.at = max(to, self.at)

    def digest(self) -> str:
        """SHA-256 of the whole file, in hex."""
        assert self._hash is not None, "open it with a checksum"
        self.go(self.size)
        return self._hash.hexdigest()

    def _fetch(self, count: int) -> bytes:
        parts = []
        at, stop = self.at, self.at + count
        while at < stop:
            if not self._from <= at < self._from + len(self._piece):
                self._piece, self._from = self._get(at), at
            part = self._piece[at - self._from : stop - self._from]
            if not part:
                break
            parts.append(part)
            at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _get(self, start: int) -> bytes:
        assert self._pool is not None
        ahead = self._next
        piece = ahead[1].result() if ahead and ahead[0] == start else self._range(start)
        following = start + len(piece)
        self._next = (following, self._pool.submit(self._range, following)) if following < self.size else None
        return piece

    def _range(self, start: int) -> bytes:
        return storage.read_range(self._url, start, min(self.size, start + _PIECE))


def walk(stream: Stream) -> Iterator[Member | Damage]:
    """The members of a tar in their order. Between two of them the caller may read the first's data from the stream."""
    extended: dict[str, str] = {}  # what the headers before a member's own say of it
    zeros, lost = 0, None  # blocks of zeros just seen; where a damaged stretch began
    while True:
        start = stream.at
        block = stream.read(BLOCK)
        if len(block) < BLOCK:
            if lost is not None:
                yield Damage(lost, "a header beside it is damaged")
            if block.strip(b"\0") or not zeros:
                yield Damage(start, "the tar ends too early")
            return
        if block == _ZEROS:
            zeros += 1
            continue
        header = _parse(block)
        if header is None:
            lost = start if lost is None else lost
            continue
        if lost is not None or zeros:
            yield Damage(start if lost is None else lost, "a header beside it is damaged")
            extended = {}
        zeros, lost = 0, None
        if header.kind in _LONG_NAME + _LONG_LINK + _PAX + _PAX_GLOBAL:
            extended |= _extension(stream, header)
            continue
        member, stop = _member(stream, header, extended)
        extended = {}
        if stop > stream.size:
            yield Damage(start, "the tar ends too early")
            return
        if member is not None:
            yield member
        stream.go(stop + -stop % BLOCK)


class _Header(NamedTuple):
    name: bytes
    size: int
    kind: bytes
    more: bool  # of a sparse file's map


def _parse(block: bytes) -> _Header | None:
    """A header, or None where the block is none."""
    try:
        checksum = int(block[148:156].strip(b" \0") or b"0", 8)
        size = _number(block[124:136])
    except ValueError:
        return None
    if checksum != sum(block) - sum(block[148:156]) + 8 * 32 or size < 0:
        return None
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:  # GNU's own magic has no prefix there
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return _Header(name, size, block[156:157], block[482] == 1)


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: too large for octal
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _extension(stream: Stream, header: _Header) -> dict[str, str]:
    """What an extended header says of the next member; too long ones say nothing."""
    stop = stream.at + header.size
    data = stream.read(header.size) if header.size <= _NAME_LIMIT else b""
    stream.go(stop + -stop % BLOCK)
    if header.kind in _LONG_NAME:
        return {"path": data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")}
    return _records(data) if header.kind in _PAX else {}


def _records(data: bytes) -> dict[str, str]:
    """Pax's ``length key=value`` lines."""
    records = {}
    while data:
        length, blank, _ = data.partition(b" ")
        if not blank or not length.isdigit() or len(length) > 8 or not len(length) < int(length) <= len(data):
            break
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    return records


def _member(stream: Stream, header: _Header, extended: dict[str, str]) -> tuple[Member | None, int]:
    """The member that a header opens, None for a folder, and where its data ends."""
    sparse = header.kind == _SPARSE
    more = sparse and header.more
    while more:  # blocks that continue the map of a sparse file
        more = stream.read(BLOCK)[504:505] == b"\1"
    claimed = extended.get("size", "")
    size = int(claimed) if claimed.isascii() and claimed.isdigit() and len(claimed) < 20 else header.size
    if header.kind in _WITHOUT_DATA:
        size = 0
    name = extended.get("path") or header.name.decode("utf-8", "surrogateescape")
    sparse = sparse or any(key.startswith("GNU.sparse") for key in extended)
    name = extended.get("GNU.sparse.name", name)
    stop = stream.at + size
    if header.kind == b"5" or name.endswith("/"):
        return None, stop
    return Member(name, stream.at, size, header.kind in _REGULAR and not sparse), stop
