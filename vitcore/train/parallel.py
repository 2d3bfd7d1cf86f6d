"""How ranks share a model: each holds all of it (DDP), or each holds a part of every layer (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from vitcore.objectives import Objective
from vitcore.objectives.heads import GlobalBatchNorm
from vitcore.world import World

Policy = Literal["ddp", "fsdp"]


class Parallel:
    """An objective whose gradients are averaged over the ranks. To be made before the optimiser, which sees the parts.

    Attributes:
        module: what is called for a forward pass; the objective itself where nothing is wrapped around it.
    """

    def __init__(self, objective: Objective, world: World, policy: Policy) -> None:
        self.module: nn.Module = objective
        self._objective, self._world = objective, world
        self._scalars: list[nn.Parameter] = []
        if not world.distributed:
            return
        if policy == "ddp":
            self.module = DistributedDataParallel(objective, gradient_as_bucket_view=True)
            return
        mesh = init_device_mesh(world.device.type, (world.size,))
        # A learned temperature has no dimension to cut: every rank keeps it, and its gradient is averaged here.
        self._scalars = [parameter for parameter in objective.parameters() if parameter.ndim == 0]
        for block in blocks(objective):
            fully_shard(block, mesh=mesh)
        fully_shard(objective, mesh=mesh, ignored_params=set(self._scalars))

    def synchronising(self, *, last: bool) -> AbstractContextManager[None]:
        """Around a micro-batch: gradients are averaged over the ranks behind the last one only."""
        if isinstance(self._objective, FSDPModule):
            self._objective.set_requires_gradient_sync(last)
        elif isinstance(self.module, DistributedDataParallel) and not last:
            return self.module.no_sync()
        return nullcontext()

    def finish(self) -> None:
        """Behind the last micro-batch: average the gradients that were not averaged on the way. Collective."""
        for parameter in self._scalars:
            if parameter.grad is not None:
                self._world.sum(parameter.grad).div_(self._world.size)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, every rank holds all weights, and any part of the model can be called on one rank alone.

        For validation: without gradients and optimiser state, weights alone fit where training does. Collective.
        """
        parts = [module for module in self._objective.modules() if isinstance(module, FSDPModule)]
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for number, part in enumerate(parts):
                part.reshard()
                part.set_reshard_after_forward(number > 0, recurse=False)  # the root is needed again at once


def blocks(network: nn.Module) -> list[nn.Module]:
    """The repeated parts of a network, innermost first: what stands in its lists and is no single layer of torch.

    What is gathered, compiled and computed again as one.
    """
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


def repeatable(network: nn.Module) -> list[nn.Module]:
    """The blocks that say the same when they are computed again: a batch norm would count its batch twice."""
    norms = (_BatchNorm, GlobalBatchNorm)
    return [block for block in blocks(network) if not any(isinstance(module, norms) for module in block.modules())]


def recompute_activations(network: nn.Module, **options: Any) -> list[nn.Module]:
    """From now on blocks keep their input alone and are computed again in the backward pass (1604.06174).

    Args:
        network: whose blocks.
        options: more of `torch.utils.checkpoint.checkpoint`.
    Returns:
        The blocks that do: those whose attribute `forward` was set.
    """
    found = repeatable(network)
    for block in found:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, **options)
    return found


def compile_forward(objective: Objective, policy: Policy) -> None:
    """torch.compile of the whole forward pass; of each block where they are gathered one by one in between."""
    for module in blocks(objective) if policy == "fsdp" else [objective]:
        module.compile()


def global_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The 2-norm over all gradients; over all ranks' parts where they are sharded. Collective."""
    sharded = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    others = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    norms = [whole(nn.utils.get_total_norm(kind)) for kind in (sharded, others) if kind]
    return norms[0] if len(norms) == 1 else nn.utils.get_total_norm(norms)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all ranks' parts where it is sharded. Collective."""
    if isinstance(tensor, DTensor):
        gathered: Tensor = tensor.full_tensor()
        return gathered
    return tensor
