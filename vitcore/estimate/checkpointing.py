"""Activation checkpointing (1604.06174) tried on a network: its blocks keep their inputs and compute the rest again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The repeated parts of a network: what stands in its lists and is no single layer of torch, innermost first."""
    listed = [
        child
        for holder in network.modules()
        if isinstance(holder, nn.ModuleList | nn.Sequential)
        for child in holder
        if not isinstance(child, nn.ModuleList | nn.Sequential)
        and not type(child).__module__.startswith("torch.nn")
        and next(child.parameters(), None) is not None
    ]
    known = set(listed)
    return [block for block in listed if not known & (set(block.modules()) - {block})]


@contextmanager
def checkpointed(network: nn.Module, again: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Inside, every block of the network is checkpointed; `again` gives the context of what is computed again."""
    blocks = blocks_of(network)
    for block in blocks:
        block.forward = partial(
            checkpoint,
            block.forward,
            use_reentrant=False,
            preserve_rng_state=False,  # there is nothing to drop alike
            context_fn=lambda: (nullcontext(), again()),
        )
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
