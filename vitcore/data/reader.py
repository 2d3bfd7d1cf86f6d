"""The stored bytes of a sample, by its row in the index; no tar is ever walked.

Local shards are read at the sample's offset through a bounded number of open files. Positional reads rather than memory
maps: they are as fast from the page cache, release the GIL while a disk is slow, and a tar that was cut short gives a
short read instead of a bus error. Remote shards are read by byte range; what arrives is compared with the content hash
of the index.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import OrderedDict
from pathlib import Path

from vitcore import storage
from vitcore.data.decode import BadSampleError
from vitcore.data.index import Index
from vitcore.data.manifest import Dataset
from vitcore.errors import WorkError

_OPEN_FILES = 256
_TRIES = 4
_FIRST_PAUSE = 0.5  # seconds; doubles with every try


class Reader:
    """Reads samples of one split; safe to share between threads. Close it, or leave its `with`.

    Args:
        dataset: an opened version.
        split: its name.
        index: the split's index, where the caller has it already.
        open_files: most shards kept open at a time.
    """

    def __init__(
        self, dataset: Dataset, split: str, *, index: Index | None = None, open_files: int = _OPEN_FILES
    ) -> None:
        self.index = dataset.index(split) if index is None else index
        self._urls = [dataset.shard_url(shard) for shard in dataset.shards(split)]
        self._local = [storage.local_path(url) if storage.is_local(url) else None for url in self._urls]
        # Looked up once, before threads share the reader: a property that loads itself is not theirs to race for.
        self._hashes = None if all(self._local) else self.index.hashes
        self._open_files = open_files
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._lock = threading.Lock()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, sample: int) -> bytes:
        """The stored image of the sample at row `sample`.

        Raises:
            BadSampleError: its shard is gone or cut short, or the bytes are not those that were indexed.
            WorkError: a remote store does not answer.
        """
        shard = int(self.index.shard_of[sample])
        start, size = int(self.index.offsets[sample]), int(self.index.sizes[sample])
        local = self._local[shard]
        try:
            if local is not None:
                data = self._file(shard, local).read(start, size)
            else:
                data = _read_remote(self._urls[shard], start, start + size)
        except FileNotFoundError:
            raise BadSampleError(f"its shard {self._urls[shard]} is missing") from None
        if len(data) != size:
            raise BadSampleError(f"its shard {self._urls[shard]} ends before the sample does")
        if local is None and not self._is_indexed(sample, data):
            raise BadSampleError(f"its bytes in {self._urls[shard]} are not those that were indexed")
        return data

    def _is_indexed(self, sample: int, data: bytes) -> bool:
        return self._hashes is None or hashlib.sha256(data).digest() == self._hashes[sample].tobytes()

    def close(self) -> None:
        """Close the files; a read that is under way still ends well."""
        with self._lock:
            self._files.clear()

    def _file(self, shard: int, path: Path) -> _File:
        with self._lock:
            file = self._files.get(shard)
            if file is None:
                file = self._files[shard] = _File(path)
                if len(self._files) > self._open_files:
                    self._files.popitem(last=False)
            self._files.move_to_end(shard)
            return file


class _File:
    """An open file that closes itself with its last user: a thread may still read what another has put aside."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, start: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, start)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):  # it has none when opening failed
            os.close(self._descriptor)


def _read_remote(url: str, start: int, stop: int) -> bytes:
    pause = _FIRST_PAUSE
    for attempt in range(1, _TRIES + 1):
        try:
            return storage.read_range(url, start, stop)
        except FileNotFoundError:
            raise
        except OSError as error:
            if attempt == _TRIES:
                raise WorkError(f"{url} could not be read in {_TRIES} tries: {error}") from error
            time.sleep(pause)
            pause *= 2
    raise AssertionError("the last try returned or raised")
