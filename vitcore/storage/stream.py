"""Files too large for memory, as Python's own kind of open file."""

from __future__ import annotations

import io
from typing import IO, Any

from vitcore.storage.files import read_range, size
from vitcore.storage.urls import is_local, local_path


def stream(url: str, piece: int = 8 * 2**20) -> IO[bytes]:
    """Open a file for reading, from any place in it.

    Args:
        url: of the file.
        piece: bytes that are asked for at once in a store; each piece is tried again by itself.

    Raises:
        FileNotFoundError: there is none.
    """
    if is_local(url):
        return local_path(url).open("rb")
    return io.BufferedReader(_Ranges(url), piece)


class _Ranges(io.RawIOBase):
    def __init__(self, url: str) -> None:
        self._url = url
        self._size = size(url)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._size)
        data = read_range(self._url, self._position, stop)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
