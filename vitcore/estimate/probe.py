"""A few steps of the training itself, on the hardware that is here: what assumptions are replaced by."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import torch

from vitcore.data.loading.batch import to_inputs
from vitcore.estimate.subject import Subject
from vitcore.recipe import Recipe, apply_overrides
from vitcore.train.checkpoint import CheckpointStore, Saver
from vitcore.train.learner import Learner
from vitcore.train.loop import optimise
from vitcore.train.request import TrainRequest
from vitcore.train.validate.split import evaluation_loader
from vitcore.world import World, pick_device

STEPS = 20
_WARM = 6  # steps before those that are timed: more than the loader prepares ahead
_STEP_S = 1.0  # seconds that a step may take; larger batches are cut
_MOST_S = 60.0  # seconds after which fewer steps must do
_LEAST = 4  # that are timed at least
_VALIDATED = 512  # photographs of the validation split that are timed at most


@dataclass(frozen=True, slots=True)
class Probe:
    """Measured on this machine, of one worker."""

    steps: int
    """That were timed."""
    batch_size: int
    """Samples of each."""
    step_s: float
    """Mean seconds of a step, with what it waited for its batch."""
    setup_s: float
    """Until the first step could begin."""
    validate_s: float
    """Of one photograph of a validation; 0 without."""
    checkpoint_s: float
    """That a step waits for a checkpoint."""
    publish_s: float
    """Of the model that a validation found to be the best."""


def probe(subject: Subject, flops_per_sample: float, peak: float, threads: int | None) -> Probe:
    """Take twenty steps (fewer where they are long) through the training's own learner and loader.

    Args:
        subject: the training.
        flops_per_sample: of a step.
        peak: FLOP/s of this machine, by which a batch is cut so that a step takes about a second.
        threads: CPU cores to compute with.
    """
    request = _cut(subject.request, max(1, int(_STEP_S * 0.5 * peak / flops_per_sample)), threads)
    began = time.perf_counter()
    learner = Learner(request, subject.dataset, World(device=pick_device(request.compute.accelerator)))
    seconds, setup_s = _steps(learner, began)
    validate_s = _validate(learner)
    with TemporaryDirectory() as folder:
        store = CheckpointStore(folder, "probe", 1, learner.world)
        with Saver(store, request.compute.checkpoint_async) as saver:
            began = time.perf_counter()
            saver.publish(0, learner.product(), learner.card())
            saver.wait()  # as the checkpoint behind a validation does
            published = time.perf_counter()
            saver.save(learner.progress, learner.state())
            saved = time.perf_counter()
    return Probe(
        steps=len(seconds),
        batch_size=request.recipe.train.batch_size,
        step_s=statistics.fmean(seconds),
        setup_s=setup_s,
        validate_s=validate_s,
        checkpoint_s=saved - published,
        publish_s=published - began,
    )


def _steps(learner: Learner, began: float) -> tuple[list[float], float]:
    """Seconds of each timed step, and those before the first one."""
    seconds: list[float] = []
    with learner.loader() as loader:
        batch = next(loader)
        before = start = time.perf_counter()
        for number in range(_WARM + STEPS):
            optimise(learner, batch)
            _wait(learner.world.device)
            batch = next(loader)
            now = time.perf_counter()
            if number >= _WARM:
                seconds.append(now - before)
            before = now
            if len(seconds) >= _LEAST and now - start > _MOST_S:
                break
    return seconds, start - began


@torch.no_grad()
def _validate(learner: Learner) -> float:
    """Seconds of a photograph that is validated on, loading included."""
    recipe = learner.request.recipe
    if not recipe.validates:
        return 0.0
    learner.objective.eval()
    most = min(_VALIDATED, learner.dataset.split(recipe.eval.split).samples)
    began = time.perf_counter()
    with evaluation_loader(learner, recipe.eval.split, most=most) as loader:
        for batch in loader:
            with learner.precision.autocast():
                learner.objective.predict(to_inputs(batch, learner.world.device).images_SCHW)
    _wait(learner.world.device)
    return (time.perf_counter() - began) / most


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cut(request: TrainRequest, most: int, threads: int | None) -> TrainRequest:
    """The same training with a batch of at most `most` samples, and without end."""
    recipe: Recipe = request.recipe
    overrides: dict[str, object] = {"train.duration": "1M steps"}
    if most < recipe.train.batch_size:
        overrides |= {"train.batch_size": max(8, most // 8 * 8), "data.lanes": None}
    return request.model_copy(
        update={
            "recipe": apply_overrides(recipe, overrides),
            "compute": request.compute.model_copy(update={"threads": request.compute.threads or threads}),
            "teacher_outputs": None,
        }
    )
