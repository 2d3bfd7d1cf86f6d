"""What fully sharded data parallelism (FSDP; 2304.11277) would leave on a device."""

from __future__ import annotations

from vitcore.estimate.cost import Size
from vitcore.estimate.memory import Memory

GATHERED = 2
"""Blocks whose weights are whole at one time: the one that computes, and the next, which is fetched meanwhile."""


def sharded_peak(memory: Memory, size: Size, devices: int) -> int:
    """Bytes of a device when weights, gradients, optimiser and averages are cut over all devices.

    Blocks are gathered one after the other; what is in no block stays gathered. The teacher is not sharded. On one
    device nothing changes.
    """
    if devices == 1:
        return memory.peak
    cut = memory.resident - memory.teacher + memory.gradients
    whole = size.root_bytes + GATHERED * size.block_bytes
    return cut // devices + whole + memory.teacher + memory.activations
