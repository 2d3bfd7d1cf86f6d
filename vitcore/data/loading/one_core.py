"""Tensor operations of one thread on one core: where threads share the work, a team for each would only be in the way.

OpenMP gives every thread that calls it a team. `torch.set_num_threads` would set the number for the whole process, thus
for a training in it too; OpenMP's own call is for the calling thread only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


def stay_on_one_core() -> None:
    """Keep this thread's tensor operations from starting threads of their own, from now on."""
    library = _openmp()
    if library is not None:
        library.omp_set_num_threads(1)


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this thread's tensor operations from starting threads of their own, for as long as it lasts."""
    library = _openmp()
    if library is None:
        yield
        return
    before = library.omp_get_max_threads()
    library.omp_set_num_threads(1)
    try:
        yield
    finally:
        library.omp_set_num_threads(before)


def _openmp() -> ctypes.CDLL | None:
    torch.get_num_threads()  # torch sets the thread's number on first use: let it, before
    return _library()


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        library.omp_set_num_threads.restype = None
        library.omp_get_max_threads.restype = ctypes.c_int
    except (OSError, AttributeError, TypeError):
        return None  # another OpenMP, or none in sight: more threads than needed, same result
    return library
