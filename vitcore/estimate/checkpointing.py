"""Activation checkpointing tried on a network, and undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import nn

from vitcore.train.parallel import recompute_activations


@contextmanager
def checkpointed(network: nn.Module, again: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Inside, the blocks of the network are checkpointed; `again` gives the context of what is computed again."""
    blocks = recompute_activations(
        network,
        preserve_rng_state=False,  # there is nothing to drop alike
        context_fn=lambda: (nullcontext(), again()),
    )
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
