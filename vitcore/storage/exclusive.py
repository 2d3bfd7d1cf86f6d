"""Replacing a file that several may replace at once, so that nobody's replacement is lost.

A local file is compared and replaced under a lock. A store does both in one conditional put, where its answers under
concurrency show that it honours the conditions; elsewhere the replacement happens under a lease in the store itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitcore.storage import s3
from vitcore.storage.conditions import are_honoured
from vitcore.storage.files import publish, read
from vitcore.storage.lease import Lease
from vitcore.storage.retry import patiently
from vitcore.storage.urls import filesystem, is_local, local_path

_REMEMBERED = 16  # puts in an object's lineage


def tag(url: str) -> str | None:
    """What identifies a small file's present content for `replace`; None where there is no file.

    Take the tag before reading the file: a file replaced between the two is then found out.
    """
    if s3.is_s3(url):
        head = patiently(url, "looked up", s3.Place.of(url).head)
        return head.etag if head else None
    try:
        return hashlib.sha256(read(url)).hexdigest()
    except FileNotFoundError:
        return None


def replace(url: str, data: bytes, expected: str | None) -> bool:
    """Publish a file unless somebody else was first.

    Args:
        url: of the file.
        data: its new content.
        expected: the `tag` of the file that `data` is to replace; None if there must be no file yet.

    Returns:
        False, with nothing changed, if the file has another tag now.

    Raises:
        WorkError: others kept the file busy, or this process was held up so long that it lost its turn.
        OSError: the store failed; the file may have been replaced or not.
    """
    if is_local(url):
        with _locked(local_path(url)):
            if tag(url) != expected:
                return False
            publish(local_path(url), data)
            return True
    if s3.is_s3(url) and are_honoured(url):
        return replace_conditionally(url, data, expected)
    return replace_under_lease(url, data, expected)


def replace_conditionally(url: str, data: bytes, expected: str | None) -> bool:
    """`replace` by a conditional put.

    An answer may be lost after the put took effect, and the put that is tried again is then refused. So every put
    carries a name of its own in the object's metadata, with the names of the puts before it: whoever finds his name
    there has replaced the file, even if it was replaced again since.
    """
    place = s3.Place.of(url)
    head = patiently(url, "looked up", place.head)
    if (head.etag if head else None) != expected:
        return False
    name = secrets.token_hex(8)
    before = head.metadata.get("lineage", "").split() if head else []
    lineage = {"lineage": " ".join([name, *before][:_REMEMBERED])}

    def put() -> bool:
        if place.put(data, lineage, expected):
            return True
        now = place.head()
        return now is not None and name in now.metadata.get("lineage", "").split()

    return patiently(url, "replaced", put)


def replace_under_lease(url: str, data: bytes, expected: str | None) -> bool:
    """`replace` for stores without conditions: at most one process at a time compares and puts."""
    fs, path = filesystem(url)
    with Lease.of(url) as lease:
        if tag(url) != expected:
            return False

        def put() -> None:
            lease.check()
            lease.call(fs, "pipe_file", path, data)

        patiently(url, "replaced", put)
        return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file beside `path`. It is gone afterwards; the lock of a killed process is free at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_still(lock, descriptor):  # else the holder before deleted it, and others lock a new one
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return
        finally:
            os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
