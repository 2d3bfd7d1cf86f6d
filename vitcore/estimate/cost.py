"""What a training step takes, of one rank: a rehearsal of its share, with everything counted."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch

from vitcore.data.loading.batch import Batch, to_inputs
from vitcore.estimate.checkpointing import checkpointed
from vitcore.estimate.memory import Memory, bytes_of
from vitcore.estimate.rehearsal import CPU, Rehearsal, rehearsing
from vitcore.estimate.subject import Captions, Subject
from vitcore.estimate.watch import Watch
from vitcore.models.clip import Clip
from vitcore.objectives import Coupled, Embeddings
from vitcore.objectives.momentum import Momentum
from vitcore.train.accumulate import accumulate
from vitcore.train.parallel import blocks

_MICROS = 2  # micro-batches that are run: further ones compute and hold what the second does


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's part of a step."""

    ranks: int
    slots: int
    """S: samples of a rank, with padding."""
    lane_size: int
    microbatch: int | None = None
    """Most samples in a pass (`compute.microbatch`)."""

    @property
    def span(self) -> int:
        """Samples of a micro-batch: whole lanes, as `Batch.micro` cuts them."""
        if self.microbatch is None:
            return self.slots
        return min(self.slots, max(1, self.microbatch // self.lane_size) * self.lane_size)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one rank's share of a step takes."""

    flops: int
    """Of forward and backward passes of all micro-batches; see `vitcore.estimate.flops`."""
    exchanged: int
    """Bytes it gives into collectives other than the sum of the gradients."""
    memory: Memory


@dataclass(frozen=True, slots=True)
class Size:
    """How large what is trained is."""

    parameters: int
    """Of model and heads, with what is frozen; networks that follow are not counted."""
    trained: int
    block_bytes: int
    """Weights of the largest repeated block."""
    root_bytes: int
    """Weights that are in no block."""
    checkpoint_bytes: int
    """Weights, optimiser and averages: what a checkpoint holds."""
    predict_flops: int
    """Of what the product says of one image, in validation."""
    text_flops: int
    """Of one caption in validation; 0 without a text tower."""
    coupled: bool
    """Whether the loss compares the samples of all ranks."""


def rehearse(
    subject: Subject, share: Share, dtype: torch.dtype | None, *, cuda: bool, checkpointing: bool = False
) -> Cost:
    """Run one rank's share of a step.

    Args:
        subject: what is trained.
        share: the rank's part.
        dtype: of autocast; None: fp32.
        cuda: whether autocast does what it does on CUDA.
        checkpointing: whether blocks keep their inputs only.
    """
    request = subject.request
    compute = request.compute.model_copy(update={"microbatch": share.microbatch})
    with rehearsing(subject, share.ranks, dtype, cuda=cuda) as learner:
        learner.request = request.model_copy(update={"compute": compute})
        slots = min(share.slots, _MICROS * share.span)
        batch = subject.batch(slots, share.lane_size)
        objective = learner.objective
        with checkpointed(objective, learner.precision.again) if checkpointing else nullcontext():
            with Watch(objective.parameters()) as watch:
                accumulate(learner, batch)
            flops, exchanged = watch.flops, watch.exchanged
            memory = learner.memory(watch.peak, watch.gradients_at_peak)
            if slots == share.slots:
                return Cost(flops, exchanged, memory)
            if not isinstance(objective, Coupled):
                return Cost(flops * share.slots // slots, exchanged, memory)
            return _coupled(learner, objective, batch, share, Cost(flops, exchanged, memory))


def _coupled(learner: Rehearsal, objective: Coupled, batch: Batch, share: Share, run: Cost) -> Cost:
    """From a run of a few micro-batches to one of all: embedding grows with their number, the loss over all of them
    does not, and is run on rows of the whole share.
    """
    few, whole = (_loss(learner, objective, batch, slots, share) for slots in (len(batch.weights_S), share.slots))
    more_rows = whole.rows - few.rows
    embedding = (run.flops - few.flops) * share.slots // len(batch.weights_S)
    inside = max(run.memory.activations + 2 * more_rows, whole.inside)  # every row has a gradient
    peak = run.memory.peak + max(0, inside - run.memory.activations)
    memory = replace(run.memory, activations=inside, peak=peak)
    exchanged = run.exchanged - few.exchanged + whole.exchanged
    return Cost(embedding + whole.flops, exchanged, memory)


@dataclass(frozen=True, slots=True)
class _Loss:
    """The coupled half of a step over so many rows."""

    flops: int
    exchanged: int
    rows: int
    """Bytes of the rows."""
    inside: int
    """Most bytes at one time, with the rows."""


def _loss(learner: Rehearsal, objective: Coupled, batch: Batch, slots: int, share: Share) -> _Loss:
    with torch.no_grad(), learner.precision.autocast():
        micro = next(iter(batch.micro(share.span)))
        one: Embeddings = objective(to_inputs(micro, CPU))
    rows = tuple(torch.empty(slots, *row.shape[1:], requires_grad=True) for row in one.rows)
    shared = tuple(torch.empty_like(value, dtype=torch.float32).requires_grad_() for value in one.shared)
    with Watch() as watch:
        terms = objective.couple(Embeddings(rows, shared), torch.ones(slots))
        terms.loss.backward()  # type: ignore[no-untyped-call]
    size = bytes_of(rows)
    return _Loss(watch.flops, watch.exchanged, size, size + watch.peak)


def measure_size(subject: Subject, dtype: torch.dtype | None, *, cuda: bool) -> Size:
    """How large what is trained is, and what one image costs in validation."""
    with rehearsing(subject, 1, dtype, cuda=cuda) as learner:
        objective = learner.objective
        parameters = dict(objective.named_parameters())
        followers = {
            id(parameter)
            for module in objective.modules()
            if isinstance(module, Momentum)
            for parameter in module.parameters()
        }
        own = [parameter for parameter in parameters.values() if id(parameter) not in followers]
        repeated = [
            block for block in blocks(objective) if not any(id(each) in followers for each in block.parameters())
        ]
        sizes = [bytes_of(block.parameters()) for block in repeated]
        memory = learner.memory(0, 0)
        size = subject.recipe.data.image_size
        objective.eval()
        with torch.no_grad(), learner.precision.autocast(), Watch() as seen:
            objective.predict(torch.empty(1, 3, size, size))
        text_flops = _text_flops(learner, subject.captions)
        return Size(
            parameters=sum(parameter.numel() for parameter in own),
            trained=sum(parameter.numel() for parameter in own if parameter.requires_grad),
            block_bytes=max(sizes, default=0),
            root_bytes=bytes_of(own) - sum(sizes),
            checkpoint_bytes=memory.weights + memory.optimizer + memory.ema + memory.momentum,
            predict_flops=seen.flops,
            text_flops=text_flops,
            coupled=isinstance(objective, Coupled),
        )


def _text_flops(learner: Rehearsal, captions: Captions | None) -> int:
    clip = learner.objective.model
    if captions is None or not isinstance(clip, Clip):
        return 0
    with torch.no_grad(), learner.precision.autocast(), Watch() as read:
        clip.embed_texts(torch.zeros(1, captions.tokens, dtype=torch.int64))
    return read.flops
