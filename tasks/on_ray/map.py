"""Map a function over many inputs on the cluster: shards to write, ranges to evaluate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray

from tasks.on_ray.cluster import cores
from vitcore.errors import RequestError, WorkError

A = TypeVar("A")
B = TypeVar("B")


def map_unordered(
    function: Callable[[A], B], inputs: Sequence[A], *, gpus: float = 0, retries: int = 3
) -> Iterator[tuple[int, B]]:
    """Apply `function` to each input as a Ray task of one core; yields (position, result) as they finish.

    A task whose worker process or node dies is run again up to `retries` times; an exception of the function itself is
    raised here. A task also gets `gpus` GPUs. No more tasks than twice the cluster's cores are queued, so that a
    million inputs cost no memory.

    Raises:
        RequestError, WorkError, OSError: as `function` raised them, or WorkError when a worker kept dying.
    """
    remote: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=retries)(function)
    waiting = iter(enumerate(inputs))
    running: dict[Any, int] = {}

    def start_next() -> None:
        for position, value in waiting:
            running[remote.remote(value)] = position
            return

    for _ in range(2 * cores()):
        start_next()
    try:
        while running:
            done, _ = ray.wait(list(running), num_returns=1)
            position = running.pop(done[0])
            yield position, _result(done[0])
            start_next()
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, RequestError | WorkError | OSError):
            raise cause from None
        raise
    except ray.exceptions.RayError as error:
        raise WorkError(f"a worker kept dying: {str(error).strip().splitlines()[0]}") from error
