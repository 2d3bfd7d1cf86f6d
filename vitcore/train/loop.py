"""The training loop: one for every objective, the same under Ray Train, torchrun and a bare process.

Restarting is the normal case: `train` looks for the newest whole checkpoint under its request's URL and goes on from
there, so that calling it again after any kill ends in the same product.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch

from vitcore.data.dataset.manifest import Dataset
from vitcore.data.loading.batch import Batch
from vitcore.duration import parse
from vitcore.errors import Preempted, WorkError
from vitcore.sink import NullSink, Sink
from vitcore.train.accumulate import accumulate
from vitcore.train.checkpoint import CheckpointStore, Saver
from vitcore.train.learner import Learner
from vitcore.train.optim import learning_rate, scale_and_clip, set_schedule, weight_decay
from vitcore.train.request import TrainRequest, TrainResult, open_dataset
from vitcore.train.validate import better, validate
from vitcore.train.watchdog import Watchdog
from vitcore.world import World

MOST_SKIPS_IN_A_ROW = 10
"""Consecutive steps with a loss or gradient that is not finite after which a run is given up."""


def never() -> bool:
    """The wish of a process whose machine stays."""
    return False


def train(request: TrainRequest, world: World, sink: Sink, leave: Callable[[], bool] = never) -> TrainResult:
    """Train to the end of the recipe, from the newest checkpoint if there is one.

    Args:
        request: what to train; equal on all ranks.
        world: this process's place.
        sink: where rank 0 reports to; other ranks' sinks are not called.
        leave: asked at every step whether this process has been told to go; then all ranks stop behind a checkpoint.
    Returns:
        The best model's place and metrics, on every rank.
    Raises:
        RequestError: recipe and inputs do not fit together.
        Preempted: a rank had to leave; the same request goes on from the checkpoint that was made.
        WorkError: the data's error budget is spent, the loss stayed non-finite, or another attempt has taken over.
    """
    dataset = open_dataset(request.recipe, request.data)
    reports: Sink = sink if world.is_main else NullSink()
    store = CheckpointStore(request.checkpoints, request.identity, request.compute.keep, world)
    try:
        learner = _newest(request, dataset, store)
        begun = learner.progress.step
        if begun < learner.plan.total:
            attempt = store.claim()
            if world.is_main:
                store.tidy(begun)
            if begun > 0:
                reports.event(begun, "resumed", f"attempt {attempt} from step {begun} with {world.size} worker(s)")
            patience_s = 60 * parse(request.compute.hang_after).value
            with (
                Watchdog(
                    world, patience_s, lambda what: reports.event(learner.progress.step, "hang", what)
                ) as watchdog,
                Saver(store, request.compute.checkpoint_async) as saver,
            ):
                learner.at = watchdog.at
                _run(learner, saver, reports, leave)
    finally:
        store.close()
    progress = learner.progress
    return TrainResult(
        model=store.model_url(progress.best_step),
        step=progress.step,
        best_step=progress.best_step,
        metrics=progress.best_metrics,
        skipped=tuple(progress.skipped),
    )


def _newest(request: TrainRequest, dataset: Dataset, store: CheckpointStore) -> Learner:
    """A learner at the newest checkpoint that is whole, or at the beginning."""
    learner = Learner(request, dataset, store.world)
    for checkpoint in store.checkpoints():
        targets = learner.targets(checkpoint)
        if store.load(checkpoint, targets):
            learner.restore(checkpoint.progress, targets)
            break
        learner = Learner(request, dataset, store.world)  # parts of the damaged one may be in the other
    return learner


def _run(learner: Learner, saver: Saver, sink: Sink, leave: Callable[[], bool]) -> None:
    """The loop proper: step, report, validate, checkpoint."""
    recipe, compute, world, plan = learner.request.recipe, learner.request.compute, learner.world, learner.plan
    progress = learner.progress
    checkpoint_due = _Clock(compute.checkpoint_every)
    with learner.loader(start_step=progress.step, stop_step=plan.total) as loader:
        batches: Iterator[Batch] = iter(loader)
        if learner.told is not None:
            batches = learner.told.attach(batches, lanes=loader.lanes, stop=plan.total)
        before, waited = time.perf_counter(), loader.wait_s
        while progress.step < plan.total:
            learner.at(progress.step + 1, "loading its photographs")
            batch, due = next(batches), checkpoint_due(progress.step + 1)
            wishes = Wishes(due, leave(), loader.wait_s - waited)
            learner.at(progress.step + 1, "computing, or waiting for others")
            update = optimise(learner, batch, wishes)
            _account(learner, update, sink)
            now = time.perf_counter()
            metrics = {f"train/{name}": value for name, value in update.metrics.items()}
            metrics["train/images_per_s"] = recipe.train.batch_size / (now - before)
            metrics["train/data_wait_s"] = sum(update.waits_s) / world.size
            metrics["train/data_wait_max_s"] = max(update.waits_s)
            validated = progress.step == plan.total or progress.step % plan.validate_every == 0
            if validated:
                metrics |= _validate_and_keep(learner, saver, sink)
            sink.log(progress.step, metrics)  # before the checkpoint, behind which no attempt reports a step again
            sink.progress(progress.step, plan.total, metrics)
            if validated or update.checkpoint or update.leave:
                learner.at(progress.step, "saving")
                saver.save(progress, learner.state(), learner.local())
            if update.leave and progress.step < plan.total:
                saver.wait()
                sink.event(progress.step, "preempted", "told to leave the machine, behind a checkpoint")
                raise Preempted(progress.step)
            _tell_committed(saver, sink)
            before, waited = time.perf_counter(), loader.wait_s  # a step's time is without validation and checkpoint
    learner.at(progress.step, "saving")
    saver.wait()
    _tell_committed(saver, sink)


def _tell_committed(saver: Saver, sink: Sink) -> None:
    for step in saver.committed():
        sink.event(step, "checkpoint", f"step {step}")


class Wishes(NamedTuple):
    """What a rank brings to a step beside its batch."""

    checkpoint: bool = False
    """Rank 0's counts: its clock says when one is due."""
    leave: bool = False
    """Any rank's counts: the machine it is on will soon be gone."""
    wait_s: float = 0.0
    """Seconds it waited for its batch."""


NONE = Wishes()


class Update(NamedTuple):
    """What one optimiser step did; equal on all ranks."""

    metrics: dict[str, float]
    skipped: bool
    bad: int
    checkpoint: bool
    leave: bool = False
    waits_s: tuple[float, ...] = ()
    """Seconds that each rank waited for its batch."""


def optimise(learner: Learner, batch: Batch, wishes: Wishes = NONE) -> Update:
    """One optimiser step on this rank's share of a global batch.

    The loss is Σ weight × loss over the global Σ weight. DDP averages gradients over ranks, so they are scaled by
    ranks ÷ Σ weight once that is known; all per-step sums, the ranks' wishes and what each waited share one all-reduce.
    """
    world, progress = learner.world, learner.progress
    torch.manual_seed(_seed(learner.request.recipe.train.seed, progress.step, world.rank))
    rate = learning_rate(
        learner.request.recipe.optim, progress.step, warmup=learner.plan.warmup, total=learner.plan.total
    )
    decay = weight_decay(learner.request.recipe.optim, progress.step, total=learner.plan.total)
    set_schedule(learner.optimizer, rate, decay)
    learner.objective.before_step(progress.step, learner.plan.total)
    names, sums = accumulate(learner, batch)
    learner.objective.before_update(progress.step, learner.plan.total)
    own = [float(len(batch.bad)), float(wishes.checkpoint and world.is_main), float(wishes.leave)]
    flags = torch.tensor(own, device=world.device)
    waits = torch.zeros(world.size, device=world.device)
    waits[world.rank] = wishes.wait_s
    totals = world.sum(torch.cat([sums, flags, waits])).tolist()
    values, waits_s = totals[: -world.size], tuple(totals[-world.size :])
    loss_sum, weight, *metric_sums = values[:-3]
    bad, checkpoint, leave = int(values[-3]), values[-2] > 0, values[-1] > 0
    weight = max(weight, 1.0)
    parameters = [parameter for group in learner.optimizer.param_groups for parameter in group["params"]]
    norm = scale_and_clip(parameters, world.size / weight, learner.request.recipe.optim.clip_norm)
    healthy = bool(np.isfinite(loss_sum) and np.isfinite(norm))
    if healthy:
        learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    if healthy and learner.ema is not None:
        learner.ema.update(progress.step)
    progress.step += 1
    learner.objective.after_step(progress.step, learner.plan.total)
    metrics = {"loss": loss_sum / weight, "lr": rate, "grad_norm": norm}
    metrics |= {name: value / weight for name, value in zip(names, metric_sums, strict=True)}
    return Update(metrics, not healthy, bad, checkpoint, leave, waits_s)


def _account(learner: Learner, update: Update, sink: Sink) -> None:
    """Keep count of bad samples and dropped updates; stop a run that cannot recover."""
    progress, budget = learner.progress, learner.request.recipe.data.error_budget
    progress.bad_samples += update.bad
    seen = progress.step * learner.request.recipe.train.batch_size
    # At the budget's rate, chance puts more than three deviations into the steps so far once in a thousand runs.
    allowed = budget * seen + 3 * math.sqrt(budget * seen) + 1 if budget > 0 else 0
    if progress.bad_samples > allowed:
        raise WorkError(
            f"{progress.bad_samples} of {seen} samples could not be read, more than data.error_budget {budget:g} "
            f"allows; run `vit check {learner.dataset.url}`"
        )
    if not update.skipped:
        return
    progress.skipped.append(progress.step)
    sink.event(progress.step, "skipped", "loss or gradient was not finite; the update was dropped")
    recent = progress.skipped[-MOST_SKIPS_IN_A_ROW:]
    if len(recent) == MOST_SKIPS_IN_A_ROW and recent[0] == progress.step - MOST_SKIPS_IN_A_ROW + 1:
        raise WorkError(
            f"loss or gradient was not finite for {MOST_SKIPS_IN_A_ROW} steps up to step {progress.step}; "
            "lower optim.lr, lengthen optim.warmup or set optim.clip_norm"
        )


def _validate_and_keep(learner: Learner, saver: Saver, sink: Sink) -> dict[str, float]:
    """Validate; the best model so far is on its way before any checkpoint names it."""
    recipe, progress = learner.request.recipe, learner.progress
    with learner.ema.applied() if learner.ema is not None else nullcontext():
        metrics = validate(learner)
        if better(recipe.eval.metric, metrics, progress.best_metrics):
            progress.best_step, progress.best_metrics = progress.step, metrics
            saver.publish(progress.step, learner.product(), learner.card())
            if recipe.validates:
                sink.event(progress.step, "best", f"{recipe.eval.metric} {metrics[recipe.eval.metric]:.4f}")
    return {f"val/{name}": value for name, value in metrics.items()}


class _Clock:
    """Says when the next checkpoint is due, in steps or minutes since the last one it called for."""

    def __init__(self, every: str) -> None:
        self._span = parse(every)
        self._time = time.monotonic()

    def __call__(self, step: int) -> bool:
        if self._span.unit == "steps":
            return step % max(1, round(self._span.value)) == 0
        if time.monotonic() - self._time < self._span.value * 60:
            return False
        self._time = time.monotonic()
        return True


def _seed(seed: int, step: int, rank: int) -> int:
    """Seed of dropout and stochastic depth: a function of the step, so that no generator state need be saved."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))
