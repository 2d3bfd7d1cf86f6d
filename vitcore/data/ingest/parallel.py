"""Work spread over this machine: threads or processes behind one way to ask, which a cluster can stand in for.

mapper(function, inputs) -> pairs (position, result), as they finish
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from multiprocessing import get_context
from typing import Any, Protocol, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class Mapper(Protocol):
    """Applies a function to every input, somewhere; yields (position, result) in the order they finish."""

    def __call__(self, function: Callable[[A], B], inputs: Sequence[A]) -> Iterator[tuple[int, B]]:
        """Map `function` over `inputs`."""


def threads(count: int | None = None) -> Mapper:
    """Threads of this process, by default one a core: they start at once, and reading and decoding release the GIL."""

    def mapper(function: Callable[[Any], Any], inputs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        with ThreadPoolExecutor(count or os.cpu_count()) as pool:
            yield from _map(pool, function, inputs, ahead=2 * (count or os.cpu_count() or 1))

    return mapper


def processes(count: int | None = None) -> Mapper:
    """Processes, by default one a core: worth their start of a second or two from thousands of photographs on.

    They are forked from a clean server and not from here, where threads and open connections would be copied half-way.
    A script that asks for them needs the usual ``if __name__ == "__main__":``.
    """

    def mapper(function: Callable[[Any], Any], inputs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        context = get_context("forkserver")
        context.set_forkserver_preload([function.__module__])
        with ProcessPoolExecutor(count or os.cpu_count(), mp_context=context) as pool:
            yield from _map(pool, function, inputs, ahead=2 * (count or os.cpu_count() or 1))

    return mapper


def _map(
    pool: Executor, function: Callable[[Any], Any], inputs: Sequence[Any], *, ahead: int
) -> Iterator[tuple[int, Any]]:
    """No more than `ahead` inputs are under way, so that many of them cost no memory."""
    waiting = iter(enumerate(inputs))
    running: dict[Future[Any], int] = {}
    try:
        while True:
            for position, value in waiting:
                running[pool.submit(function, value)] = position
                if len(running) >= ahead:
                    break
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)  # what is under way may finish, nothing else begins
        raise
