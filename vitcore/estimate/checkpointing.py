"""Activation checkpointing (1604.06174) tried on a network: its blocks keep their inputs and compute the rest again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from vitcore.train.parallel import repeatable


@contextmanager
def checkpointed(network: nn.Module, again: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Inside, the blocks of the network are checkpointed; `again` gives the context of what is computed again."""
    blocks = repeatable(network)
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
