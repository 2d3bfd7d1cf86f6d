"""A learner on tensors that have shapes and no contents: the real objective, optimiser and averages, as one of any
number of ranks, in the precision of hardware that need not be there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from vitcore.estimate.memory import Memory, bytes_of
from vitcore.estimate.subject import Captions, Subject
from vitcore.models.clip import Clip
from vitcore.objectives import Objective
from vitcore.objectives.contrast import Contrast
from vitcore.objectives.momentum import Momentum
from vitcore.train.ema import Ema
from vitcore.train.learner import Learner
from vitcore.train.optim import build_optimizer
from vitcore.train.parallel import Parallel
from vitcore.train.precision import Precision
from vitcore.world import World

CPU = torch.device("cpu")
"""Where the hollow tensors say they are. Autograd asks the driver of any other device, whether it is there."""
_FP32_ON_CUDA = frozenset(
    [
        *(F.layer_norm, F.group_norm, F.softmax, F.log_softmax),
        *(torch.softmax, torch.log_softmax, Tensor.softmax, Tensor.log_softmax),
    ]
)
"""What autocast computes in fp32 on CUDA and not on a CPU (torch's autocast op reference)."""


class Rehearsal(Learner):
    """A learner whose tensors have no contents; only what a step touches is there.

    Args:
        subject: what is trained.
        objective: of it, without memory.
        ranks: W; a process group of as many must be there if it is more than one.
        dtype: of autocast; None: fp32.
        cuda: whether autocast does what it does on CUDA.
    """

    def __init__(
        self, subject: Subject, objective: Objective, ranks: int, dtype: torch.dtype | None, *, cuda: bool
    ) -> None:
        self.request = subject.request
        self.world = World(0, ranks, CPU)
        self.precision: HollowPrecision = HollowPrecision(CPU.type, dtype, cuda)
        self.objective = _hollow(objective)
        if isinstance(self.objective, Contrast):
            assert subject.captions is not None
            _read_nothing(self.objective, subject.captions)
        self.parallel = Parallel(self.objective, World(), "ddp")  # nothing is sent: `Watch` counts what would be
        self.optimizer = build_optimizer(self.objective, subject.recipe.optim)
        decay = subject.recipe.train.ema_decay
        self.ema = None if decay is None else Ema(self.objective.model, decay)
        self._teacher = subject.teacher
        self._bring_gradients()
        self.optimizer.step()  # after which its state is there
        if ranks == 1:
            self.optimizer.zero_grad(set_to_none=True)

    def _bring_gradients(self) -> None:
        """DistributedDataParallel keeps its buckets between steps, and gradients are views of them."""
        for parameter in self.objective.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)

    def memory(self, inside: int, gradients_inside: int) -> Memory:
        """What is held, with the most that a step adds to it, of which so much are gradients."""
        objective = self.objective
        networks = [module for module in objective.modules() if isinstance(module, Momentum)]
        momentum = bytes_of(tensor for network in networks for tensor in _tensors(network))
        trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        states = [
            value for state in self.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
        ]
        gradients = bytes_of(trained)
        held = Memory(
            weights=bytes_of(_tensors(objective)) - momentum,
            gradients=gradients,
            optimizer=bytes_of(states),
            ema=0 if self.ema is None else bytes_of(self.ema.shadow.values()),
            momentum=momentum,
            teacher=0 if self._teacher is None else sum(tensor.nbytes for tensor in _tensors(self._teacher)),
            activations=inside - gradients_inside,
            peak=0,
        )
        kept = gradients if self.world.distributed else 0
        peak = held.resident + max(kept + inside, gradients)
        return replace(held, peak=peak)


@contextmanager
def rehearsing(subject: Subject, ranks: int, dtype: torch.dtype | None, *, cuda: bool) -> Iterator[Rehearsal]:
    """Inside, tensors have no contents, and this process is the first of a group whose other ranks are not there.

    Args:
        subject: what is trained.
        ranks: W.
        dtype: of autocast; None: fp32.
        cuda: whether autocast does what it does on CUDA.
    """
    from torch._C._distributed_c10d import FakeStore
    from torch.testing._internal.distributed import fake_pg  # noqa: F401  registers the backend

    objective = subject.objective(ranks)  # networks are drawn before: that looks at contents
    if ranks > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), _Zeros():
            yield Rehearsal(subject, objective, ranks, dtype, cuda=cuda)
    finally:
        if ranks > 1:
            dist.destroy_process_group()


@dataclass(frozen=True, slots=True)
class HollowPrecision(Precision):
    """Autocast of a device that is not there: the CPU's, with what CUDA's leaves in fp32."""

    cuda: bool = False

    def autocast(self) -> AbstractContextManager[None]:
        """Context of a forward pass."""
        return nullcontext() if self.dtype is None else self._autocast(self.dtype)

    def again(self) -> AbstractContextManager[None]:
        """Context of a forward pass that activation checkpointing repeats, beside autocast."""
        return _InFp32() if self.cuda and self.dtype is not None else nullcontext()

    @contextmanager
    def _autocast(self, dtype: torch.dtype) -> Iterator[None]:
        with torch.autocast(CPU.type, dtype=dtype), self.again():
            yield


class _InFp32(TorchFunctionMode):
    """Computes in fp32 what autocast on CUDA does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _FP32_ON_CUDA:
            return func(*args, **(kwargs or {}))
        with torch.autocast(CPU.type, enabled=False):
            first, *rest = args
            return func(first.float(), *rest, **(kwargs or {}))


class _Zeros(TorchFunctionMode):
    """A number that is asked for (the seed of a micro-batch) is zero."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return 0 if func is Tensor.item else func(*args, **(kwargs or {}))


class _Emptied(TorchFunctionMode):
    """Copies of tensors are empty ones of the same shape and type."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (Tensor.clone, Tensor.__deepcopy__):
            return func(*args, **(kwargs or {}))
        tensor = args[0]
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CPU)
        if func is Tensor.__deepcopy__:
            args[1][id(tensor)] = empty
        return empty


def _hollow(objective: Objective) -> Objective:
    """A copy whose tensors have no contents."""
    with _Emptied():
        return copy.deepcopy(objective)


def _read_nothing(objective: Contrast, captions: Captions) -> None:
    """Texts become as many tokens as the longest has: no contents say where one ends."""
    clip = objective.model
    assert isinstance(clip, Clip)
    objective.tokenize = lambda texts: torch.zeros(len(texts), captions.tokens, dtype=torch.int64)  # type: ignore[assignment]
    clip.text.cut = lambda tokens_BN: tokens_BN  # type: ignore[method-assign]


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()
