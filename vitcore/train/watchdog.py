"""A hang becomes an error that says which rank stood where.

A rank that waits for another in a collective cannot look after itself. So every rank has a thread that tells a small
store beside the group where the rank is; where nothing has moved for too long, the threads read what the others said,
report it, and end their processes, from which whoever started them goes on.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # public, but not in its list

from vitcore.world import World

_ANSWER = timedelta(seconds=5)  # to wait for the store, whose server is a thread of rank 0
_BEATS = 2  # of a rank's thread, behind which a silent one is taken for dead
_SLOW = 5.0  # times the longest step so far is no hang, however short the patience

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank is: what it does, for which step, and how often its thread has said so."""

    step: int
    doing: str
    beat: int

    def __str__(self) -> str:
        return f"{self.doing}, step {self.step}"


class Watchdog:
    """Watches one training; a context manager. `at` costs nothing to speak of.

    Args:
        world: this process's place.
        patience_s: seconds without a move after which it is a hang; 0: nothing is watched.
        tell: told the sentence on rank 0 before the process ends.
    """

    def __init__(self, world: World, patience_s: float, tell: Tell) -> None:
        self._world, self._patience_s, self._tell = world, patience_s, tell
        self._place, self._since, self._longest = Place(0, "starting", 0), time.monotonic(), 0.0
        self._pause_s = min(5.0, patience_s / 4)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="vit-watchdog", daemon=True)

    def at(self, step: int, doing: str) -> None:
        """This rank goes on: it is now doing something for a step."""
        now = time.monotonic()
        self._longest = max(self._longest, now - self._since)
        self._place, self._since = Place(step, doing, 0), now

    def __enter__(self) -> Watchdog:
        if self._patience_s > 0:
            self._store = self._open()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _open(self) -> Store | None:
        """A store whose server is rank 0's. Collective."""
        if not self._world.distributed:
            return None
        host, size = os.environ.get("MASTER_ADDR", "127.0.0.1"), self._world.size
        if not self._world.is_main:
            return TCPStore(host, self._world.broadcast(None), size, is_master=False, timeout=_ANSWER)
        store = TCPStore(host, 0, size, is_master=True, wait_for_workers=False, timeout=_ANSWER)
        self._world.broadcast(store.port)
        return store

    def _watch(self) -> None:
        suspected: tuple[int, dict[int, Place]] | None = None
        beat = 0
        while not self._over.wait(self._pause_s):
            beat += 1
            self._say(beat)
            still = time.monotonic() - self._since
            if still <= max(self._patience_s, _SLOW * self._longest):
                suspected = None
            elif suspected is None:
                suspected = beat, self._others()
            elif beat - suspected[0] >= _BEATS:  # long enough for whoever lives to have said something new
                self._end(self._sentence(still, suspected[1], self._others()), beat)
                return

    def _say(self, beat: int) -> None:
        place = self._place
        if self._store is not None:
            with contextlib.suppress(RuntimeError, OSError):  # rank 0 is gone, or does not answer
                self._store.set(str(self._world.rank), f"{place.step} {beat} {place.doing}")

    def _others(self) -> dict[int, Place]:
        """What the ranks said last, as far as the store answers."""
        found = {self._world.rank: self._place}
        for rank in range(self._world.size):
            try:
                if rank != self._world.rank and self._store is not None and self._store.check([str(rank)]):
                    step, beat, doing = self._store.get(str(rank)).decode().split(" ", 2)
                    found[rank] = Place(int(step), doing, int(beat))
            except (RuntimeError, OSError):
                break
        return found

    def _sentence(self, still: float, before: dict[int, Place], now: dict[int, Place]) -> str:
        ranks = []
        for rank in range(self._world.size):
            silent = rank != self._world.rank and now.get(rank) == before.get(rank)
            place = str(now.get(rank, "never heard of"))
            ranks.append(f"rank {rank} " + (f"does not answer (last heard: {place})" if silent else place))
        return f"no step for {still:.0f} s: {'; '.join(ranks)}"

    def _end(self, sentence: str, beat: int) -> None:
        print(f"vitcore.train: {sentence}", file=sys.stderr, flush=True)
        if self._world.is_main:
            self._tell(sentence)
            time.sleep(1.0)  # the sink's thread sends
        else:  # the end of one is the end of all: rank 0, which reports, is left the time to notice and speak
            for more in range(1, 3 * _BEATS):
                time.sleep(self._pause_s)
                self._say(beat + more)
        os._exit(1)  # the main thread cannot be reached: it waits inside a collective
