"""How long a step takes: computing, the optimiser, the sum of the gradients, and waiting for photographs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitcore.estimate.cost import Cost, Share, Size
from vitcore.estimate.hardware import Hardware

BUCKET = 25 * 2**20
"""Bytes of DistributedDataParallel's buckets: the last one is summed when nothing is left to compute meanwhile."""
_BACKWARD = 2 / 3  # share of a pass that is its backward half, under which gradients are summed
_GATHERED_TOO = 1.5  # two gathers and a scatter of sums, where a sum for all is one of each (2304.11277)
_ADAM_BYTES = 28  # moved by AdamW for a parameter: weight, two moments and gradient read, the first three written

Limit = Literal["compute", "communication", "data"]


@dataclass(frozen=True, slots=True)
class Cluster:
    """So many nodes of so many devices."""

    nodes: int
    per_node: int
    hardware: Hardware
    network: float
    """Of a node to the others, in bytes/s each way."""

    @property
    def devices(self) -> int:
        """W, a worker each."""
        return self.nodes * self.per_node

    def all_reduce_s(self, size: int) -> float:
        """Seconds to sum `size` bytes over all devices: a ring in every node, then one over the nodes.

        A ring of n sends 2 · (n − 1) / n of the bytes over every link (Patarasuk and Yuan 2009).
        """
        inside, across = (2 * (count - 1) / count * size for count in (self.per_node, self.nodes))
        return inside / self.hardware.link + across / self.network


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds of a step, by what is waited for."""

    compute: float
    """Forward and backward passes."""
    optimizer: float
    """Moving weights and moments through memory; part of `compute` where that was measured."""
    all_reduce: float
    """The sum of the gradients, if it were alone; and the other collectives."""
    exposed: float
    """How much of that nothing is computed under."""
    data: float
    """Until the loader has a batch, at the measured rate."""

    @property
    def total(self) -> float:
        """Loading goes on beside all else; the longer of the two counts."""
        return max(self.busy, self.data)

    @property
    def busy(self) -> float:
        """Without waiting for photographs."""
        return self.compute + self.optimizer + self.exposed

    @property
    def limit(self) -> Limit:
        """What the step would be shorter without."""
        if self.data > self.busy:
            return "data"
        return "communication" if self.exposed > self.compute + self.optimizer else "compute"


def step(
    cluster: Cluster,
    share: Share,
    cost: Cost,
    size: Size,
    *,
    compute_s: float,
    measured: bool,
    data_s: float,
    sharded: bool = False,
) -> Step:
    """The parts of a step.

    Args:
        cluster: what it runs on.
        share: a rank's part of it.
        cost: of that part.
        size: of what is trained.
        compute_s: seconds of its passes.
        measured: whether they include the optimiser.
        data_s: seconds until a batch is loaded.
        sharded: whether weights are gathered for each half of a pass (FSDP).
    """
    gradients = cluster.all_reduce_s(cost.memory.gradients) * (_GATHERED_TOO if sharded else 1.0)
    others = cluster.all_reduce_s(cost.exchanged)
    hidden = min(1.0, share.span / share.slots) * compute_s * _BACKWARD
    last = cluster.all_reduce_s(min(BUCKET, cost.memory.gradients))
    bandwidth = cluster.hardware.bandwidth
    return Step(
        compute=compute_s,
        optimizer=0.0 if measured or not bandwidth else size.trained * _ADAM_BYTES / bandwidth,
        all_reduce=gradients + others,
        exposed=max(gradients - hidden, last) + others,
        data=data_s,
    )
