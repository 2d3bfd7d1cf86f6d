"""Writes checkpoints and models while training goes on: the step waits for a copy in memory, not for the disk."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from types import TracebackType
from typing import Literal

from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor

from vitcore.models.pretrained import ModelCard, write_pretrained
from vitcore.train.checkpoint.progress import Progress
from vitcore.train.checkpoint.store import CheckpointStore
from vitcore.train.parallel import whole
from vitcore.world import World

WORTHWHILE_MB = 32
"""Size of a state below which handing it over costs as much as writing it."""

Policy = Literal["auto", "on", "off"]


class Saver:
    """Hands states to one thread of this process, in order; as a context manager it waits for the last one.

    One state is under way at a time: handing over the next one waits for it, and raises what went wrong with it. That
    is at the same step on every rank.
    """

    def __init__(self, store: CheckpointStore, policy: Policy) -> None:
        self._store, self._policy = store, policy
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vit-checkpoint")
        on_gpu = store.world.device.type == "cuda"
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=on_gpu,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=on_gpu,
            )
        )
        self._under_way: list[Future[str] | Future[None]] = []
        self._committed: list[int] = []

    def publish(self, step: int, weights: Mapping[str, Tensor], card: ModelCard) -> None:
        """Hand over the best model so far; it is written before the next checkpoint, which may name it. Collective.

        Args:
            step: of the validation that it won.
            weights: its state; rank 0's copy is written.
            card: what it is.
        """
        main = self._store.world.is_main
        copies = snapshot(weights, keep=main)
        if main:
            self._under_way.append(self._thread.submit(write_pretrained, self._store.model_url(step), copies, card))

    def save(self, progress: Progress, tensors: Mapping[str, Tensor], local: Collection[str] = ()) -> None:
        """Hand over a state. Collective.

        Args:
            progress: the scalars.
            tensors: all tensors; those that are not sharded are equal on all ranks.
            local: names of tensors that differ from rank to rank; rank 0's are kept.
        Raises:
            OSError, WorkError: the state before could not be written.
        """
        self.wait()
        part = share(tensors, local, self._store.world)
        if not in_background(self._policy, tensors):
            self._write(progress, part)
            return
        staged = self._stager.stage(part)
        assert isinstance(staged, dict)
        self._under_way.append(self._thread.submit(self._write, deepcopy(progress), staged))

    def wait(self) -> None:
        """Until everything handed over is written.

        Raises:
            OSError, WorkError: something could not be.
        """
        while self._under_way:
            self._under_way.pop(0).result()

    def committed(self) -> list[int]:
        """Steps of the checkpoints that were committed since this was asked last."""
        steps, self._committed = self._committed, []
        return steps

    def _write(self, progress: Progress, tensors: dict[str, Tensor]) -> None:
        self._store.save(progress, tensors)
        self._committed.append(progress.step)

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.wait()
        finally:
            self._thread.shutdown(wait=error is None, cancel_futures=True)
            self._stager.close()


def in_background(policy: Policy, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state is written while training goes on: `auto` where it is large enough to be worth the copy."""
    if policy != "auto":
        return policy == "on"
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return size >= WORTHWHILE_MB * 2**20


def share(tensors: Mapping[str, Tensor], local: Collection[str], world: World) -> dict[str, Tensor]:
    """What a rank writes of a state: its part of what is sharded, and of what all ranks hold about as much as others.

    Dealt before the copy is made, so that each rank copies only what it writes.
    """
    loads = [0] * world.size
    mine = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            mine[name] = tensor.detach()
            continue
        rank = 0 if name in local else min(range(world.size), key=loads.__getitem__)
        loads[rank] += tensor.numel() * tensor.element_size()
        if rank == world.rank:
            mine[name] = tensor.detach()
    return mine


def snapshot(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """A copy of a state in memory, whole where it is sharded; empty without `keep`. Collective."""
    copies = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor)
        if keep:
            copies[name] = gathered.detach().to("cpu", copy=True)
    return copies
