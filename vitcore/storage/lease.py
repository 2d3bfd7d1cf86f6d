"""The right to replace a file, for one process at a time, kept in the store itself.

Each contender writes a claim of its own below ``<url>.claims/`` and lists. It holds the lease if its claim is the only
one: of two contenders the one that lists last has written before and sees both, given that a listing shows what was
written before it. Otherwise the first by name stays and waits, and the others withdraw and come back later.

Claims are never renewed. One that others have watched for `_LIFE` seconds by their own clocks is of a killed process
and is deleted. A living process gives its claim up long before: it begins nothing under a claim older than a quarter of
that, and what it begins is broken off within another quarter. A process that is frozen between its check and its put
for the rest of that time is the one danger left; only a store with conditions can exclude it.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import fsspec.asyn
from fsspec import AbstractFileSystem

from vitcore.errors import WorkError
from vitcore.storage.files import names, remove, write
from vitcore.storage.retry import pause_up_to
from vitcore.storage.urls import join

_LIFE = 120.0
_WAIT = 300.0  # for the lease, at most
_POLL = 0.05
_LONGEST_PAUSE = 1.0


@dataclass(frozen=True)
class Lease:
    """The lease on a file, held; released at the end of a `with` block.

    Attributes:
        claims: URL of the folder of its claims.
        name: of this process's claim.
        since: when the claim was begun, by `time.monotonic`.
    """

    claims: str
    name: str
    since: float

    @classmethod
    def of(cls, url: str) -> Lease:
        """Wait for the lease on a file.

        Raises:
            WorkError: others held it all the time.
        """
        claims = f"{url}.claims"
        deadline = time.monotonic() + _WAIT
        seen: dict[str, float] = {}
        pause = _POLL
        while time.monotonic() < deadline:
            lease = cls(claims, secrets.token_hex(8), time.monotonic())
            try:
                write(join(claims, lease.name), f"{socket.gethostname()} {os.getpid()}\n".encode())
                if lease._is_alone(seen):
                    return lease
            except BaseException:
                remove(join(claims, lease.name))
                raise
            remove(join(claims, lease.name))
            pause_up_to(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        raise WorkError(f"{url} was held by others for {_WAIT:.0f} s; see {claims} for who they are and try again")

    def check(self) -> None:
        """Make sure that the lease still stands.

        Raises:
            WorkError: it was held too long.
        """
        if time.monotonic() - self.since > _LIFE / 4 or self.name not in names(self.claims):
            raise WorkError(f"this process lost its claim in {self.claims}, being too slow; run the command again")

    def call(self, fs: AbstractFileSystem, method: str, *arguments: Any) -> None:
        """Call a method of a filesystem, and break it off before others may take the lease for given up."""
        if fs.async_impl:
            coroutine = getattr(fs, f"_{method}")
            fsspec.asyn.sync(fs.loop, coroutine, *arguments, timeout=_LIFE / 4)
        else:
            getattr(fs, method)(*arguments)

    def _is_alone(self, seen: dict[str, float]) -> bool:
        """Whether this claim became the only one; `seen` remembers since when others' claims have been there."""
        while time.monotonic() - self.since < _LIFE / 8:
            found = names(self.claims)
            if self.name not in found:
                return False  # taken for a dead one's
            others = [name for name in found if name != self.name]
            if not others:
                return True
            now = time.monotonic()
            for name in others:
                if now - seen.setdefault(name, now) > _LIFE:
                    remove(join(self.claims, name))
            if self.name != min(found):
                return False
            time.sleep(_POLL)
        return False

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        remove(join(self.claims, self.name))
