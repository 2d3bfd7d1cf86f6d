"""The training loop: one for every objective, the same under Ray Train, torchrun and a bare process.

Restarting is the normal case: `train` looks for the newest whole checkpoint under its request's URL and goes on from
there, so that calling it again after any kill ends in the same product.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch

from vitcore import storage
from vitcore.data.loading.batch import Batch
from vitcore.data.loading.loader import TrainLoader
from vitcore.duration import parse
from vitcore.errors import WorkError
from vitcore.models.pretrained import save_pretrained
from vitcore.sink import NullSink, Sink
from vitcore.train.accumulate import accumulate
from vitcore.train.checkpoint import CheckpointStore
from vitcore.train.learner import Learner
from vitcore.train.optim import learning_rate, scale_and_clip, set_schedule, weight_decay
from vitcore.train.request import TrainRequest, TrainResult, open_dataset
from vitcore.train.validate import better, validate
from vitcore.world import World

MOST_SKIPS_IN_A_ROW = 10
"""Consecutive steps with a loss or gradient that is not finite after which a run is given up."""


def train(request: TrainRequest, world: World, sink: Sink) -> TrainResult:
    """Train to the end of the recipe, from the newest checkpoint if there is one.

    Args:
        request: what to train; equal on all ranks.
        world: this process's place.
        sink: where rank 0 reports to; other ranks' sinks are not called.
    Returns:
        The best model's place and metrics, on every rank.
    Raises:
        RequestError: recipe and inputs do not fit together.
        WorkError: the data's error budget is spent, or the loss stayed non-finite.
    """
    dataset = open_dataset(request.recipe, request.data)
    learner = Learner(request, dataset, world)
    store = CheckpointStore(request.checkpoints, request.identity, request.compute.keep)
    reports: Sink = sink if world.is_main else NullSink()
    checkpoint = store.newest()
    if checkpoint is not None:
        learner.restore(*checkpoint)
        reports.event(
            learner.progress.step, "resumed", f"from step {learner.progress.step} with {world.size} worker(s)"
        )
    world.barrier()  # nobody may write before everybody has read
    if world.is_main:
        store.tidy(learner.progress.step)
    if learner.progress.step < learner.plan.total:
        _run(learner, store, reports)
    progress = learner.progress
    return TrainResult(
        model=store.model_url(progress.best_step),
        step=progress.step,
        best_step=progress.best_step,
        metrics=progress.best_metrics,
        skipped=tuple(progress.skipped),
    )


def _run(learner: Learner, store: CheckpointStore, sink: Sink) -> None:
    """The loop proper: step, report, validate, checkpoint."""
    recipe, compute, world, plan = learner.request.recipe, learner.request.compute, learner.world, learner.plan
    progress = learner.progress
    checkpoint_due = _Clock(compute.checkpoint_every)
    with TrainLoader(
        learner.dataset,
        recipe.data,
        others=learner.mixture.datasets[1:],
        batch_size=recipe.train.batch_size,
        seed=recipe.train.seed,
        rank=world.rank,
        size=world.size,
        start_step=progress.step,
        stop_step=plan.total,
        threads=compute.loader_workers,
        cache=learner.cache,
    ) as loader:
        batches: Iterator[Batch] = iter(loader)
        if learner.told is not None:
            batches = learner.told.attach(batches, lanes=loader.lanes, stop=plan.total)
        before, waited = time.perf_counter(), loader.wait_s
        while progress.step < plan.total:
            batch, due = next(batches), checkpoint_due(progress.step + 1)
            update = optimise(learner, batch, want_checkpoint=due, wait_s=loader.wait_s - waited)
            _account(learner, update, sink)
            now = time.perf_counter()
            metrics = {f"train/{name}": value for name, value in update.metrics.items()}
            metrics["train/images_per_s"] = recipe.train.batch_size / (now - before)
            metrics["train/data_wait_s"] = sum(update.waits_s) / world.size
            metrics["train/data_wait_max_s"] = max(update.waits_s)
            validated = progress.step == plan.total or progress.step % plan.validate_every == 0
            if validated:
                metrics |= _validate_and_keep(learner, store, sink)
            sink.log(progress.step, metrics)  # before the checkpoint, behind which no attempt reports a step again
            sink.progress(progress.step, plan.total, metrics)
            if validated or update.checkpoint:
                _save(learner, store)
            if update.checkpoint and not validated:
                sink.event(progress.step, "checkpoint", f"step {progress.step}")
            before, waited = time.perf_counter(), loader.wait_s  # a step's time is without validation and checkpoint


class Update(NamedTuple):
    """What one optimiser step did; equal on all ranks."""

    metrics: dict[str, float]
    skipped: bool
    bad: int
    checkpoint: bool
    waits_s: tuple[float, ...] = ()
    """Seconds that each rank waited for its batch."""


def optimise(learner: Learner, batch: Batch, *, want_checkpoint: bool = False, wait_s: float = 0.0) -> Update:
    """One optimiser step on this rank's share of a global batch.

    The loss is Σ weight × loss over the global Σ weight. DDP averages gradients over ranks, so they are scaled by
    ranks ÷ Σ weight once that is known; all per-step sums, rank 0's wish for a checkpoint and what each rank waited
    share one all-reduce.
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
    flags = torch.tensor([len(batch.bad), float(want_checkpoint and world.is_main)], device=world.device)
    waits = torch.zeros(world.size, device=world.device)
    waits[world.rank] = wait_s
    totals = world.sum(torch.cat([sums, flags, waits])).tolist()
    values, waits_s = totals[: -world.size], tuple(totals[-world.size :])
    loss_sum, weight, *metric_sums = values[:-2]
    bad, checkpoint = int(values[-2]), values[-1] > 0
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
    return Update(metrics, not healthy, bad, checkpoint, waits_s)


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


def _validate_and_keep(learner: Learner, store: CheckpointStore, sink: Sink) -> dict[str, float]:
    """Validate; when it is the best so far, write the model before any checkpoint names it."""
    recipe, progress = learner.request.recipe, learner.progress
    with learner.ema.applied() if learner.ema is not None else nullcontext():
        metrics = validate(learner)
        if better(recipe.eval.metric, metrics, progress.best_metrics):
            progress.best_step, progress.best_metrics = progress.step, metrics
            if learner.world.is_main:
                publish_model(learner, store.model_url(progress.step))
            if recipe.validates:
                sink.event(progress.step, "best", f"{recipe.eval.metric} {metrics[recipe.eval.metric]:.4f}")
    return {f"val/{name}": value for name, value in metrics.items()}


def publish_model(learner: Learner, url: str) -> None:
    """Write the current weights as a pretrained folder under `url`, the config last."""
    if storage.is_local(url):
        save_pretrained(storage.local_path(url), learner.objective.product, learner.card())
        return
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        save_pretrained(folder, learner.objective.product, learner.card())
        for name in ("model.safetensors", "config.json"):
            storage.write(storage.join(url, name), (folder / name).read_bytes())


def _save(learner: Learner, store: CheckpointStore) -> None:
    if learner.world.is_main:
        store.save(learner.progress, learner.state())


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
