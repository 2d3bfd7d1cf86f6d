"""Batches assembled by threads, handed out in order: what the loaders for training and evaluation share.

A batch in the making (`Assembly`) is cut into pieces; threads take pieces from one queue, over several batches at a
time, and the thread that ends the last piece of a batch completes it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitcore.data.loading.batch import Batch, Mix
from vitcore.data.loading.one_core import one_core, stay_on_one_core
from vitcore.data.reading.decode import BadSampleError
from vitcore.errors import WorkError

_LOOK_S = 0.1  # seconds between looks whether the loader was closed while a batch is waited for

Render = Callable[[Sequence[Tensor]], None]
"""Makes the views of a sample, each in its place in the batch: uint8 [3, h, w]."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a slot shows."""

    row: int
    """In the index of its split."""
    label: int
    """-1: none"""
    key: Callable[[], str]
    """Its name, asked for when it is bad."""
    source: int = 0
    """Number of its dataset in a mixture."""
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the batches of a loader have room for."""

    slots: int
    """S"""
    lane_size: int
    """g"""
    image_sizes: tuple[int, ...]
    """Side of each view, in pixels."""
    mixture: bool = False
    """Whether slots say which dataset they are of."""
    captions: bool = False


class Assembly:
    """A batch whose samples are still arriving. Slots start with weight 0 and get weight 1 as they are filled."""

    def __init__(self, step: int, layout: Layout) -> None:
        self.step = step
        self.pieces: list[Callable[[], None]] = []
        """Fill all slots between them, in any order."""
        self.mix: Callable[[Tensor], Mix | None] = lambda weights_S: None
        """Called with the weights once they are known."""
        self.batch: Batch | None = None
        self.error: BaseException | None = None
        self.done = threading.Event()
        self._layout = layout
        slots, pinned = layout.slots, torch.cuda.is_available()
        self._views = [
            torch.empty((slots, 3, size, size), dtype=torch.uint8, pin_memory=pinned) for size in layout.image_sizes
        ]
        self._labels_S, self._samples_S, self._sources_S = torch.full((3, slots), -1, dtype=torch.int64)
        self._weights_S = torch.zeros(slots)
        # The same memory as numpy, which sets one element in a tenth of the time.
        self._labels, self._samples, self._sources, self._weights = (
            tensor.numpy() for tensor in (self._labels_S, self._samples_S, self._sources_S, self._weights_S)
        )
        self._captions = [""] * slots
        self._bad: dict[int, str] = {}
        self._open_pieces = 0
        self._lock = threading.Lock()

    def pad(self, first: int) -> None:
        """Leave the slots from `first` on empty."""
        for view in self._views:
            view[first:] = 0

    def fill(self, slot: int, sample: Sample, render: Render) -> None:
        """Show a sample in a slot; a bad one leaves zeros and weight 0 there, and its key in `Batch.bad`."""
        self._samples[slot], self._labels[slot], self._sources[slot] = sample.row, sample.label, sample.source
        places = [view[slot] for view in self._views]
        try:
            render(places)
        except BadSampleError:
            for place in places:
                place.zero_()
            key = sample.key()
            with self._lock:
                self._bad[slot] = f"{sample.source}/{key}" if self._layout.mixture else key
        else:
            self._weights[slot] = 1
            self._captions[slot] = sample.caption

    def begin(self) -> list[Callable[[], None]]:
        """The pieces, after which `end_piece` is due once for each."""
        pieces = self.pieces or [lambda: None]  # a rank may have nothing but padding
        self._open_pieces = len(pieces)
        return pieces

    def end_piece(self, error: BaseException | None) -> None:
        """Note that a piece was done, or what went wrong; the last one completes the batch."""
        with self._lock:
            self._open_pieces -= 1
            self.error = self.error or error
            if self._open_pieces:
                return
        if self.error is None:
            try:
                self.batch = self._complete()
            except Exception as problem:
                self.error = problem
        self.done.set()

    def _complete(self) -> Batch:
        images_SCHW, *more_views = self._views
        return Batch(
            step=self.step,
            images_SCHW=images_SCHW,
            labels_S=self._labels_S,
            weights_S=self._weights_S,
            samples_S=self._samples_S,
            lane_size=self._layout.lane_size,
            mix=self.mix(self._weights_S),
            bad=tuple(self._bad[slot] for slot in sorted(self._bad)),
            sources_S=self._sources_S if self._layout.mixture else None,
            captions=tuple(self._captions) if self._layout.captions else None,
            more_views=tuple(more_views),
        )


class Pipeline:
    """Iterator over the batches of consecutive steps.

    Args:
        plan: the assembly of a step, its pieces not yet begun.
        start: first step.
        stop: step after the last; None: endless.
        threads: 0 works in the caller's thread, when a batch is asked for.
        depth: batches in the making while the caller is busy with another.
    """

    def __init__(
        self, plan: Callable[[int], Assembly], start: int, stop: int | None, *, threads: int, depth: int
    ) -> None:
        self.wait_s = 0.0
        """Seconds the caller has waited so far."""
        self._plan, self._next, self._stop = plan, start, stop
        self._depth = max(1, depth)
        self._ahead: deque[Assembly] = deque()
        self._work: queue.SimpleQueue[tuple[Assembly, Callable[[], None]] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=_serve, args=(self._work, self._closed), name=f"loader-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        asked = time.perf_counter()
        try:
            batch = self._take()
        except BaseException:
            self.close()
            raise
        finally:
            self.wait_s += time.perf_counter() - asked
        return batch

    def close(self) -> None:
        """Stop the threads, after the sample each is at. What was in the making is lost."""
        self._closed.set()
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _take(self) -> Batch:
        if self._closed.is_set():
            raise StopIteration
        if not self._threads:
            return self._take_alone()
        self._look_ahead(self._depth)
        if not self._ahead:
            raise StopIteration
        assembly = self._ahead[0]
        while not assembly.done.wait(_LOOK_S) and not self._closed.is_set():
            pass  # closed from another thread, nobody would end the batch
        self._ahead.popleft()
        if not self._closed.is_set():
            self._look_ahead(self._depth)
        return self._result(assembly)

    def _take_alone(self) -> Batch:
        if self._next == self._stop:
            raise StopIteration
        assembly = self._plan(self._next)
        self._next += 1
        with one_core():
            for piece in assembly.begin():
                _do(assembly, piece)
        return self._result(assembly)

    def _look_ahead(self, depth: int) -> None:
        while len(self._ahead) < depth and self._next != self._stop:
            assembly = self._plan(self._next)
            self._next += 1
            self._ahead.append(assembly)
            for piece in assembly.begin():
                self._work.put((assembly, piece))

    def _result(self, assembly: Assembly) -> Batch:
        if assembly.error is not None:
            raise assembly.error
        if assembly.batch is None:
            raise WorkError("the loader was closed while a batch was waited for")
        return assembly.batch


def _do(assembly: Assembly, piece: Callable[[], None]) -> None:
    try:
        piece()
    except BaseException as error:
        assembly.end_piece(error)
    else:
        assembly.end_piece(None)


def _serve(work: queue.SimpleQueue[tuple[Assembly, Callable[[], None]] | None], closed: threading.Event) -> None:
    stay_on_one_core()
    while (item := work.get()) is not None:
        if not closed.is_set():
            _do(*item)
