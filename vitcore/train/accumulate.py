"""Forward and backward passes of a step over micro-batches: summed losses, or gradient caching for coupled ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vitcore.data.loading.batch import Batch, to_inputs
from vitcore.objectives import Coupled, Embeddings, Terms
from vitcore.train.learner import Learner


class Sums(NamedTuple):
    """What this rank's share of a step adds up to; gradients are in the parameters."""

    names: list[str]
    """Of the metrics."""
    values: Tensor
    """[Σ loss, Σ weight, Σ metric …], float32"""


def accumulate(learner: Learner, batch: Batch) -> Sums:
    """Gradients of this rank's Σ weight × loss, in micro-batches of `compute.microbatch` slots."""
    micros = list(batch.micro(learner.request.compute.microbatch))
    if isinstance(learner.objective, Coupled):
        sums = _couple(learner, learner.objective, micros)
    else:
        sums = _each(learner, micros)
    learner.parallel.finish()
    return sums


def _each(learner: Learner, micros: list[Batch]) -> Sums:
    """The losses of one micro-batch after the other."""
    totals: Sums | None = None
    for index, micro in enumerate(micros):
        with learner.parallel.synchronising(last=index == len(micros) - 1):
            with learner.precision.autocast():
                terms: Terms = learner.parallel.module(to_inputs(micro, learner.world.device))
            terms.loss.backward()  # type: ignore[no-untyped-call]
        sums = _sums(terms)
        totals = sums if totals is None else Sums(sums.names, totals.values + sums.values)
    assert totals is not None
    return totals


def _couple(learner: Learner, objective: Coupled, micros: list[Batch]) -> Sums:
    """The loss over all micro-batches at once.

    One micro-batch needs one pass. Several are embedded without gradient first; the loss then tells the gradient of
    every embedding, and a second pass carries it on (Gao et al. 2021, 2101.06983). Both passes of a micro-batch drop
    out the same, since its seed is set before each.
    """
    device = learner.world.device
    weights_S = torch.cat([micro.weights_S for micro in micros]).to(device)
    if len(micros) == 1:
        with learner.precision.autocast():
            embeddings: Embeddings = learner.parallel.module(to_inputs(micros[0], device))
        terms = objective.couple(_in_fp32(embeddings), weights_S)
        terms.loss.backward()  # type: ignore[no-untyped-call]
        return _sums(terms)
    seeds = torch.randint(2**62, (len(micros),)).tolist()
    passed: list[Embeddings] = []
    for micro, seed in zip(micros, seeds, strict=True):
        torch.manual_seed(seed)
        with torch.no_grad(), learner.precision.autocast():
            passed.append(_in_fp32(objective(to_inputs(micro, device))))
    cached = Embeddings(
        rows=tuple(torch.cat(rows).requires_grad_() for rows in zip(*(part.rows for part in passed), strict=True)),
        shared=tuple(value.detach().requires_grad_() for value in passed[0].shared),
    )
    terms = objective.couple(cached, weights_S)
    terms.loss.backward()  # type: ignore[no-untyped-call]
    start = 0
    for index, (micro, seed) in enumerate(zip(micros, seeds, strict=True)):
        stop = start + len(micro.weights_S)
        torch.manual_seed(seed)
        with learner.parallel.synchronising(last=index == len(micros) - 1):
            with learner.precision.autocast():
                again = learner.parallel.module(to_inputs(micro, device))
            _carry_on(_in_fp32(again), cached, slice(start, stop), share=1 / len(micros))
        start = stop
    return _sums(terms)


def _carry_on(embeddings: Embeddings, cached: Embeddings, rows: slice, *, share: float) -> None:
    """Backward from the cached gradients of some slots, and a share of those that are of no slot."""
    pairs = [
        (value, gradient.grad[rows])
        for value, gradient in zip(embeddings.rows, cached.rows, strict=True)
        if value.requires_grad and gradient.grad is not None
    ]
    pairs += [
        (value, gradient.grad * share)
        for value, gradient in zip(embeddings.shared, cached.shared, strict=True)
        if value.requires_grad and gradient.grad is not None
    ]
    values, gradients = zip(*pairs, strict=True)
    torch.autograd.backward(values, gradients)


def _in_fp32(embeddings: Embeddings) -> Embeddings:
    """Similarities are computed in fp32 whatever the towers computed in."""
    return Embeddings(
        tuple(row.float() for row in embeddings.rows), tuple(value.float() for value in embeddings.shared)
    )


def _sums(terms: Terms) -> Sums:
    names = sorted(terms.metrics)
    parts = [terms.loss.detach(), terms.weight, *(terms.metrics[name] for name in names)]
    return Sums(names, torch.stack(parts).float())
