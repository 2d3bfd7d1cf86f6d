"""What lies below a folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from vitcore.storage import s3
from vitcore.storage.retry import patiently
from vitcore.storage.urls import filesystem, is_local, local_path


class Entry(NamedTuple):
    """A file in a listing.

    Attributes:
        path: relative to the folder that was listed; bytes that are not UTF-8 appear as escapes.
        size: bytes; 0 for a link that leads nowhere.
        stamp: changes when the file changes: its time of modification in nanoseconds, or the store's tag.
        utf8: whether `path` is the file's real name. A file whose is not can be told of and not opened.
    """

    path: str
    size: int
    stamp: str
    utf8: bool = True


def walk(url: str) -> Iterator[Entry]:
    """The files below a folder at any depth, without hidden ones and what lies in hidden folders.

    Links to folders are followed, unless they lead back up; pipes, sockets and devices are left out. A local folder
    comes in the order of its names, a store in its own.

    Raises:
        FileNotFoundError, NotADirectoryError: a local folder is none. (A store has no folders and finds no files.)
    """
    if is_local(url):
        for prefix, files, _ in _folders(local_path(url)):
            yield from _entries(prefix, files)
    elif s3.is_s3(url):
        place = s3.Place.of(url)
        start = len(place.key.rstrip("/")) + 1 if place.key else 0
        for page in place.below(url):
            for found in page:
                path = found["Key"][start:]
                if not _hidden(path):
                    yield Entry(path, found["Size"], _stamp(found))
    else:
        yield from _found(url)


def entry(url: str) -> Entry:
    """One file as a listing shows it, with an empty path.

    Raises:
        FileNotFoundError: there is none.
    """
    if is_local(url):
        status = local_path(url).stat()
        return Entry("", status.st_size, str(status.st_mtime_ns))
    fs, path = filesystem(url)
    info = patiently(url, "looked up", lambda: fs.info(path))
    return Entry("", int(info["size"]), _stamp(info))


def folders(url: str) -> Iterator[str]:
    """Paths of the folders below a local folder, relative to it, without hidden ones; none in a store."""
    if is_local(url):
        for prefix, _, below in _folders(local_path(url)):
            for folder in below:
                yield _shown(prefix + folder.name)


def _folders(root: Path) -> Iterator[tuple[str, list[os.DirEntry[str]], list[os.DirEntry[str]]]]:
    """Every folder from `root` down: its relative path with a slash at the end, its files, its folders."""
    status = root.stat()
    waiting: list[tuple[str, str, frozenset[tuple[int, int]]]] = [
        (str(root), "", frozenset({(status.st_dev, status.st_ino)}))
    ]
    while waiting:
        folder, prefix, above = waiting.pop()
        files, below, deeper = [], [], []
        with os.scandir(folder) as found:
            for one in sorted(found, key=lambda found: found.name):
                if one.name.startswith("."):
                    continue
                if not one.is_dir():
                    files.append(one)
                    continue
                below.append(one)
                status = one.stat()
                here = (status.st_dev, status.st_ino)
                if here not in above:  # else a link back up
                    deeper.append((one.path, f"{prefix}{one.name}/", above | {here}))
        yield prefix, files, below
        waiting += reversed(deeper)


def _entries(prefix: str, files: list[os.DirEntry[str]]) -> Iterator[Entry]:
    for file in files:
        try:
            status = file.stat()
        except FileNotFoundError:
            if file.is_symlink():
                yield _named(prefix + file.name, 0, "")
            continue  # or deleted meanwhile
        if stat.S_ISREG(status.st_mode):
            yield _named(prefix + file.name, status.st_size, str(status.st_mtime_ns))


def _named(path: str, size: int, stamp: str) -> Entry:
    shown = _shown(path)
    return Entry(path, size, stamp) if shown == path else Entry(shown, size, stamp, utf8=False)


def _shown(path: str) -> str:
    return path if path.isascii() else path.encode("utf-8", "backslashreplace").decode()


def _found(url: str) -> Iterator[Entry]:
    fs, base = filesystem(url)
    found = patiently(url, "listed", lambda: fs.find(base, detail=True))
    for name, info in found.items():
        path = str(name)[len(base.rstrip("/")) + 1 :]
        if not _hidden(path):
            yield Entry(path, int(info["size"]), _stamp(info))


def _hidden(path: str) -> bool:
    """Whether a listing leaves out this key of a store: hidden, or the mark of an empty folder."""
    return not path or path.endswith("/") or path.startswith(".") or "/." in path


def _stamp(info: dict[str, object]) -> str:
    """Whatever a store gives that changes with a file, by the names its fsspec client uses."""
    known = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "mtime", "updated", "created")
    value = next((info[name] for name in known if info.get(name)), "")
    return str(value.timestamp() if isinstance(value, datetime) else value).strip('"')
