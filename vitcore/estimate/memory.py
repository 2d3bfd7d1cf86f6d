"""What a device holds at its fullest, by what it is for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device, by what they hold."""

    weights: int
    """Parameters and buffers of what is trained."""
    gradients: int
    """Of all trained parameters."""
    optimizer: int
    """What the optimiser keeps of them."""
    ema: int
    """Averaged weights (`train.ema_decay`)."""
    momentum: int
    """Networks that follow the trained one: MoCo's second encoder, DINO's teacher."""
    teacher: int
    """The teacher that is distilled from."""
    activations: int
    """Most of what else lives at one time: what the backward pass needs, and what is just being computed."""
    peak: int
    """Most of all at one time. On one device it is less than the sum, since gradients come as activations go."""

    @property
    def resident(self) -> int:
        """What is there between steps: all but gradients and activations."""
        return self.weights + self.optimizer + self.ema + self.momentum + self.teacher


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind some tensors, each counted once."""
    return sum({id(storage): storage.nbytes() for storage in (each.untyped_storage() for each in tensors)}.values())
