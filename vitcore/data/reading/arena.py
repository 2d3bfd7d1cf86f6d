"""Bytes put aside on a local disk: pages of one nameless file, which is gone with the process whatever ends it.

What is written stays in the page cache while there is memory for it, so that it costs a copy and not a disk access.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vitcore.errors import WorkError

PAGE = 1 << 17
"""Bytes of a page."""


class Descriptor:
    """An open file that closes itself with its last user: a thread may still read what another has put aside."""

    number = -1  # as long as opening has not succeeded

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class Arena:
    """A file of at most `limit` bytes, handed out by the page. Taking and giving back are for one thread at a time.

    Args:
        folder: where the file lies; None: the system's folder for temporary files.
        limit: most bytes of the file.

    Raises:
        WorkError: the folder cannot be written to.
    """

    def __init__(self, folder: Path | None, limit: int) -> None:
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                self._file = Descriptor(os.dup(file.fileno()))
        except OSError as error:
            where = folder or tempfile.gettempdir()
            raise WorkError(f"no cache can be kept in {where} ({error}); name another folder for it") from error
        self.pages = limit // PAGE
        """How many can be used, taken or free."""
        self._unused = self.pages  # never taken so far: the file grows no larger than it must
        self._next = 0
        self._free: list[int] = []

    def take(self, size: int) -> list[int] | None:
        """Pages for `size` bytes, those given back last before others; None when there are not enough."""
        count = -(-size // PAGE)
        reused = min(count, len(self._free))
        if count - reused > self._unused:
            return None
        keep = len(self._free) - reused
        pages = self._free[keep:]
        del self._free[keep:]
        pages += range(self._next, self._next + count - reused)
        self._next += count - reused
        self._unused -= count - reused
        return sorted(pages)

    def give(self, pages: list[int]) -> None:
        """Take pages back."""
        self._free += pages

    def retire(self, pages: list[int]) -> None:
        """From now on use neither these pages nor any that was never taken: the disk has no room for them."""
        self.pages -= len(pages) + self._unused
        self._unused = 0

    def write(self, pages: list[int], data: bytes) -> None:
        """Write `data` to the start of these pages.

        Raises:
            OSError: the disk is full or fails.
        """
        rest = memoryview(data)
        for at, length in _runs(pages, 0, len(data)):
            stop = at + length
            while at < stop:
                written = os.pwrite(self._file.number, rest[: stop - at], at)
                at, rest = at + written, rest[written:]

    def read(self, pages: list[int], start: int, size: int) -> bytes:
        """Bytes `start` to `start + size` of what was written to these pages.

        Raises:
            OSError: the disk fails.
        """
        pieces = [os.pread(self._file.number, length, at) for at, length in _runs(pages, start, size)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _runs(pages: list[int], start: int, size: int) -> Iterator[tuple[int, int]]:
    """Where these bytes lie in the file: offsets and lengths, neighbouring pages joined."""
    stop = start + size
    number = start // PAGE
    while start < stop:
        at = pages[number] * PAGE + start % PAGE
        end = (number + 1) * PAGE
        while end < stop and pages[number + 1] == pages[number] + 1:
            number, end = number + 1, end + PAGE
        length = min(end, stop) - start
        yield at, length
        start, number = start + length, number + 1
