"""A teacher's stored outputs, put to the batches they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from vitcore import storage
from vitcore.data.loading.batch import Batch, TeacherRows
from vitcore.data.teaching.chunk import Rows, decode
from vitcore.data.teaching.outputs import Chunk, Outputs
from vitcore.errors import WorkError


class StoredOutputs:
    """Outputs that are complete up to some step.

    Args:
        place: URL of their folder.
        outputs: what lies there.
    """

    def __init__(self, place: str, outputs: Outputs) -> None:
        self.outputs = outputs
        self._place = place

    def attach(self, batches: Iterable[Batch], *, lanes: range, stop: int) -> Iterator[Batch]:
        """The batches of a rank, each with what the teacher said of it.

        A file is read once, by a thread, while the one before it is used: two are in memory. Slots that pad the rank
        get rows that are finite and mean nothing.

        Args:
            batches: of consecutive steps.
            lanes: lanes of the rank (`TrainLoader.lanes`).
            stop: step before which the batches end; what lies behind it is not read.

        Raises:
            WorkError: a file is missing or damaged, or its store does not answer.
        """
        held: dict[Chunk, Future[Rows]] = {}
        with ThreadPoolExecutor(1, thread_name_prefix="teacher") as reader:
            for batch in batches:
                chunk = self.outputs.chunk(batch.step)
                for wanted in (chunk, self._after(chunk, stop)):
                    if wanted is not None and wanted not in held:
                        held[wanted] = reader.submit(self._read, wanted)
                for old in [known for known in held if known.first < chunk.first]:
                    del held[old]
                rows = held[chunk].result()
                yield replace(batch, teacher=_of_rank(rows, batch, batch.step - chunk.first, lanes))

    def _after(self, chunk: Chunk, stop: int) -> Chunk | None:
        return self.outputs.chunk(chunk.stop) if chunk.stop < min(stop, self.outputs.steps) else None

    def _read(self, chunk: Chunk) -> Rows:
        url = storage.join(self._place, chunk.name)
        try:
            data = storage.read(url)
        except FileNotFoundError:
            raise WorkError(f"the teacher's outputs {url} are missing; store them again") from None
        except OSError as error:
            raise WorkError(f"the teacher's outputs are out of reach: {error}") from error
        top, classes, rest = decode(data, self.outputs, chunk, url)
        return Rows(*map(_pinned, (top, classes.long(), rest)))


def _of_rank(rows: Rows, batch: Batch, place: int, lanes: range) -> TeacherRows:
    """The rows of one step that belong to a rank: its lanes follow each other, and then come slots that pad."""
    slots = slice(lanes.start * batch.lane_size, lanes.stop * batch.lane_size)
    told = TeacherRows(*(tensor[place, slots] for tensor in rows))
    padding = len(batch.weights_S) - len(told.rest_S)
    if not padding:
        return told
    top = told.top_SK.shape[1]
    nothing = TeacherRows(
        torch.zeros(padding, top, dtype=told.top_SK.dtype), torch.arange(top).repeat(padding, 1), torch.zeros(padding)
    )
    return TeacherRows(*map(torch.cat, zip(told, nothing, strict=True)))


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if torch.cuda.is_available() else tensor
