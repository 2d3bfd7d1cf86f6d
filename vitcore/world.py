"""Who am I among the workers: rank, size, device and the few collectives the library needs.

The same under Ray Train, torchrun and a bare process, since all it asks for is an initialised process group, or none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """A worker's place: `rank` of `size`, computing on `device`."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Rank 0 writes checkpoints and reports."""
        return self.rank == 0

    @property
    def distributed(self) -> bool:
        """Whether collectives go over a process group."""
        return self.size > 1

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Element-wise sum over all ranks, in place; one all-reduce."""
        if self.distributed:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every rank's (picklable, small) value, on every rank, by rank."""
        if not self.distributed:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's (picklable, small) value on every rank."""
        box = [value]
        if self.distributed:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Rank 0's values of some tensors on every rank, in place."""
        if self.distributed:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def broadcast_from_main(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, on every rank; what it raises (a small exception), too."""
        made: tuple[T | None, Exception | None] = (None, None)
        if self.is_main:
            try:
                made = (make(), None)
            except Exception as error:
                made = (None, error)
        value, failure = self.broadcast(made)
        if failure is not None:
            raise failure
        return value  # type: ignore[no-any-return]

    def beside(self) -> dist.ProcessGroup | None:
        """A gloo group of the same ranks, for collectives of another thread; None in a world of one. Collective."""
        if not self.distributed:
            return None
        group = dist.new_group(backend="gloo")
        assert isinstance(group, dist.ProcessGroup)
        return group

    def leave(self, group: dist.ProcessGroup | None) -> None:
        """Give back what `beside` gave. Collective."""
        if group is not None:
            dist.destroy_process_group(group)


def pick_device(accelerator: Literal["auto", "cpu", "cuda"], local_rank: int = 0) -> torch.device:
    """The device of a worker: `auto` takes a CUDA device where there is one."""
    if accelerator == "cuda" or (accelerator == "auto" and torch.cuda.is_available()):
        device = torch.device("cuda", local_rank % max(1, torch.cuda.device_count()))
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


def current(accelerator: Literal["auto", "cpu", "cuda"] = "auto") -> World:
    """The world of the process group this process is in; a world of one without a group.

    Under torchrun (``RANK`` and ``WORLD_SIZE`` set) the group is made here; Ray Train has made it already.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = pick_device(accelerator, local_rank)
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size(), device)
    return World(device=device)
