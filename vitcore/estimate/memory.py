"""Memory while a step runs: a watch over every tensor that comes and goes, and what a device holds at its fullest."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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


class Watch(TorchDispatchMode):
    """Counts the bytes of tensors made inside it while they live, and what collectives carry.

    Works on real tensors as on fake ones. What an operator needs for itself and frees before it returns is not seen.

    Args:
        parameters: whose gradients are told apart from all else.
    """

    def __init__(self, parameters: Iterable[nn.Parameter] = ()) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        """Most bytes at one time."""
        self.gradients_at_peak = 0
        """How many of them were gradients made inside."""
        self.exchanged = 0
        """Bytes this rank gave into collectives."""
        self._gradients = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._made: set[int] = set()
        self._parameters = [each for each in parameters if each.requires_grad]
        self._hooks: list[Any] = []

    def __enter__(self) -> Watch:
        self._hooks = [each.register_post_accumulate_grad_hook(self._received) for each in self._parameters]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        for tensor in given:
            self._meet(tensor, made=False)
        result = func(*args, **(kwargs or {}))
        if func.namespace == "c10d":
            self.exchanged += max((tensor.nbytes for tensor in given), default=0)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._meet(leaf, made=True)
        return result

    def _meet(self, tensor: Tensor, *, made: bool) -> None:
        """Count a storage that is new; one that comes in from outside was there before and is not counted."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return

        def gone(_: Any) -> None:
            del self._known[key]
            if made:
                self.live -= size
                self._made.discard(key)

        self._known[key] = weakref.ref(storage, gone)
        if made:
            self._made.add(key)
            self.live += size
            if self.live > self.peak:
                self.peak, self.gradients_at_peak = self.live, self._gradients

    def _received(self, parameter: Tensor) -> None:
        """A gradient has been accumulated; the first time, one that was made inside becomes known as a gradient."""
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        if id(storage) in self._made:
            self._made.remove(id(storage))
            self._gradients += storage.nbytes()


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind some tensors, each counted once."""
    return sum({id(storage): storage.nbytes() for storage in (each.untyped_storage() for each in tensors)}.values())
