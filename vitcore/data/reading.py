"""A file by URL as Python's and Arrow's readers want it: with `read` and `seek`, fetched piece by piece."""

from __future__ import annotations

import io
from typing import IO

from vitcore import storage

_PIECE = 1 << 22  # bytes asked of a store at once


def open_file(url: str) -> IO[bytes]:
    """Open a file to be read; of one in a store, what was read ahead is the only part that is held."""
    if storage.is_local(url):
        return storage.local_path(url).open("rb")
    return io.BufferedReader(_Remote(url), _PIECE)


class _Remote(io.RawIOBase):
    """Byte ranges of a file in a store; each is asked for with `vitcore.storage`'s patience."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._size = storage.size(url)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # any buffer, which is what io hands over
        stop = min(self._size, self._at + len(buffer))
        data = storage.read_range(self._url, self._at, stop) if stop > self._at else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
