"""A watch over a step as it runs: every operator, and every tensor that comes and goes."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitcore.estimate.flops import flops_of


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts FLOPs, the bytes of tensors made inside it while they live, and what collectives carry.

    Works on real tensors as on fake ones. What an operator needs for itself and frees before it returns is not seen.

    Args:
        parameters: whose gradients are told apart from all else.
    """

    def __init__(self, parameters: Iterable[nn.Parameter] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.live = 0
        """Bytes now."""
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
        register = Tensor.register_post_accumulate_grad_hook
        self._hooks = [register(each, self._received) for each in self._parameters]  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        for tensor in given:
            self._meet(tensor, made=False)
        result = func(*args, **(kwargs or {}))
        self.flops += flops_of(func, args, kwargs or {}, result)
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
