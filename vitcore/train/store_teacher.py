"""Storing a teacher's outputs: the stream of a training goes through the teacher once, before any student sees it.

    place = store_outputs(TeachRequest(recipe=…, data=…, teacher="out/teacher", digest=…))
    train(TrainRequest(…, teacher_outputs=place), …)

Files are independent pieces of work. Killed anywhere, the same call computes those that are not there yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitcore import storage
from vitcore.data.dataset.manifest import DatasetRef
from vitcore.data.ingest.parallel import Mapper, threads
from vitcore.data.loading.batch import Batch, TeacherRows, to_inputs
from vitcore.data.loading.loader import TrainLoader
from vitcore.data.teaching.chunk import cut, encode
from vitcore.data.teaching.outputs import Chunk, Outputs, commit, folder, read, span_of
from vitcore.errors import RequestError, WorkError
from vitcore.objectives import Frozen
from vitcore.recipe import Compute, Config, DistillConfig, Recipe
from vitcore.train.learner import Plan, cache_of
from vitcore.train.precision import Capabilities, Precision, choose, tune
from vitcore.train.request import open_dataset, open_mixture
from vitcore.train.teacher import load_teacher, stream_of
from vitcore.world import pick_device

_AT_ONCE = 128  # most slots of a forward pass


class TeachRequest(Config):
    """A teacher, and the training whose stream it is asked about."""

    recipe: Recipe
    compute: Compute = Compute()
    """`accelerator`, `threads`, `precision`, `loader_workers` and the cache are looked at."""
    data: DatasetRef
    mixture: tuple[DatasetRef, ...] = ()
    teacher: str
    """A folder written by `save_pretrained`, or a public reference such as ``timm:NAME``."""
    digest: str
    """Of its weights."""
    top: int = 10
    """k: how many logits of a view to keep (4 bytes each, and 4 for the rest); all, where there are not as many."""


@dataclass(frozen=True)
class Wanted:
    """What is to be stored, and what of it is not there yet."""

    place: str
    """URL of the folder."""
    outputs: Outputs
    """Complete up to the end of the training, or further where they are."""
    steps: int
    """Of the training."""
    chunks: int
    """Files that it needs."""
    missing: tuple[Chunk, ...]


@dataclass(frozen=True)
class Piece:
    """A file to be computed, anywhere."""

    request: TeachRequest
    place: str
    outputs: Outputs
    chunk: Chunk


def wanted(request: TeachRequest) -> Wanted:
    """What `store_outputs` would do.

    Raises:
        RequestError: the recipe has no teacher, or does not fit the data.
    """
    recipe = request.recipe
    if not isinstance(recipe.objective, DistillConfig):
        raise RequestError(f"recipe {recipe.name!r} learns from no teacher; `vit recipes` lists those that do")
    if request.top < 1:
        raise RequestError(f"{request.top} logits of a view cannot be kept: keep 1 or more")
    dataset = open_dataset(recipe, request.data)
    classes = len(open_mixture(recipe, dataset, request.mixture).classes)
    outputs = Outputs(
        dataset=request.data.digest,
        stream=stream_of(recipe, (request.data, *request.mixture)),
        teacher=request.digest,
        ref=request.teacher,
        top=min(request.top, classes),
        classes=classes,
        span=span_of(recipe.train.batch_size, min(request.top, classes), classes),
        steps=Plan.of(recipe, dataset.split(recipe.data.train_split).samples).total,
    )
    place = folder(request.data.url, outputs.identity)
    known, steps = read(place), outputs.steps
    if known is not None:
        outputs = outputs.model_copy(update={"span": known.span, "steps": max(known.steps, steps)})
    needed = [chunk for chunk in outputs.chunks() if chunk.first < steps]
    there = set(storage.names(place))
    return Wanted(place, outputs, steps, len(needed), tuple(chunk for chunk in needed if chunk.name not in there))


def store_outputs(
    request: TeachRequest,
    *,
    mapper: Mapper | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Store a teacher's outputs for every step of a training, as far as they are not there.

    Args:
        request: teacher and training.
        mapper: where the work is done; default: one piece after the other, here.
        progress: told how many of the steps that were missing are done.
    Returns:
        URL of their folder, for `TrainRequest.teacher_outputs`.
    Raises:
        RequestError: teacher, recipe and data do not fit together.
        WorkError: the teacher's outputs are not finite, or the data cannot be read.
    """
    work = wanted(request)
    commit(work.place, work.outputs.model_copy(update={"steps": 0}))
    pieces = [Piece(request, work.place, work.outputs, chunk) for chunk in work.missing]
    done, total = 0, sum(chunk.stop - chunk.first for chunk in work.missing)
    for position, _ in (mapper or threads(1))(store_piece, pieces):
        done += pieces[position].chunk.stop - pieces[position].chunk.first
        if progress is not None:
            progress(done, total)
    commit(work.place, work.outputs)
    return work.place


def store_piece(piece: Piece) -> None:
    """Ask the teacher about every slot of a stretch of steps, as a student would see it, and write the answers."""
    request, outputs = piece.request, piece.outputs
    recipe, compute = request.recipe, request.compute
    device = pick_device(compute.accelerator)
    tune(device, compute.threads)
    precision = choose(compute.precision, Capabilities.of(device))
    dataset = open_dataset(recipe, request.data)
    mixture = open_mixture(recipe, dataset, request.mixture)
    teacher = Frozen(load_teacher(request.teacher, mixture.classes), device)
    with TrainLoader(
        dataset,
        recipe.data,
        others=mixture.datasets[1:],
        batch_size=recipe.train.batch_size,
        seed=recipe.train.seed,
        start_step=piece.chunk.first,
        stop_step=piece.chunk.stop,
        threads=compute.loader_workers,
        depth=2,
        cache=cache_of(compute),
    ) as loader:
        steps = [_answers(batch, teacher, precision, device, outputs.top) for batch in loader]
    storage.write(storage.join(piece.place, piece.chunk.name), encode(steps, outputs, piece.chunk))


def _answers(batch: Batch, teacher: Frozen, precision: Precision, device: torch.device, top: int) -> TeacherRows:
    parts = []
    for micro in batch.micro(_AT_ONCE):
        with precision.autocast():
            logits_SK: Tensor = teacher(to_inputs(micro, device).images_SCHW).float()
        if not logits_SK.isfinite().all():
            raise WorkError(
                f"the teacher's logits are not finite at step {batch.step}; take --compute.precision fp32, "
                "or another teacher"
            )
        parts.append(cut(logits_SK, top).to(torch.device("cpu")))
    return TeacherRows(*map(torch.cat, zip(*parts, strict=True)))
