"""Everything that changes while a model learns, assembled from a request, with its state in and out of checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vitcore import objectives
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.loading.loader import TrainLoader
from vitcore.data.reading.blocks import CacheConfig
from vitcore.duration import parse
from vitcore.errors import RequestError
from vitcore.models import Classifier
from vitcore.models.pretrained import ModelCard
from vitcore.objectives import Objective
from vitcore.recipe import Compute, Recipe
from vitcore.train.checkpoint import Checkpoint, Progress
from vitcore.train.ema import Ema
from vitcore.train.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors
from vitcore.train.parallel import Parallel, compile_forward, recompute_activations
from vitcore.train.precision import Capabilities, Precision, choose, should_compile, tune
from vitcore.train.request import TrainRequest, open_mixture
from vitcore.train.student import student
from vitcore.train.teacher import load_teacher, open_outputs
from vitcore.world import World


@dataclass(frozen=True, slots=True)
class Plan:
    """The lengths of a training, in optimiser steps."""

    total: int
    warmup: int
    validate_every: int
    per_epoch: float

    @staticmethod
    def of(recipe: Recipe, samples: int) -> Plan:
        """The plan of a recipe on a training split of `samples` samples."""
        batch_size = recipe.train.batch_size
        per_epoch = samples * recipe.data.repeats / batch_size
        total = parse(recipe.train.duration).steps(per_epoch=per_epoch, batch_size=batch_size)
        if total < 1:
            raise RequestError(f"train.duration {recipe.train.duration!r} is less than one step; make it longer")

        def part(duration: str) -> int:
            return parse(duration).steps(per_epoch=per_epoch, batch_size=batch_size, total=total)

        return Plan(total, min(part(recipe.optim.warmup), total), max(1, part(recipe.eval.every)), per_epoch)


class Learner:
    """A model under training: objective, optimiser, averaged weights, and how far it is."""

    def __init__(self, request: TrainRequest, dataset: Dataset, world: World) -> None:
        recipe, compute = request.recipe, request.compute
        tune(world.device, compute.threads)
        torch.manual_seed(recipe.train.seed)
        capabilities = Capabilities.of(world.device)
        self.request, self.dataset, self.world = request, dataset, world
        self.mixture = open_mixture(recipe, dataset, request.mixture)
        self.plan = Plan.of(recipe, dataset.split(recipe.data.train_split).samples)
        self.cache = cache_of(compute)
        self.precision: Precision = choose(compute.precision, capabilities)
        self.classes = self.mixture.classes
        """Of the datasets; what the model has a row of logits for, where the objective learns from labels."""
        self.told = open_outputs(request, len(self.classes), self.plan.total)
        """What a teacher said of every view, where that is stored; then no teacher is loaded."""
        self.objective: Objective = objectives.build(
            recipe.objective,
            student(request, self.classes),
            teacher=_teacher(request, self.classes),
            class_counts=self.mixture.class_counts(recipe.data.train_split),
            world=world,
            stored=self.told is not None,
        )
        if compute.recompute:
            recompute_activations(self.objective)
        if should_compile(compute.compile, capabilities):
            compile_forward(self.objective, compute.parallel)
        self.parallel = Parallel(self.objective, world, compute.parallel)
        self.optimizer = build_optimizer(self.objective, recipe.optim)
        decay = recipe.train.ema_decay
        self.ema = None if decay is None else Ema(self.objective.model, decay)
        self.progress = Progress()
        self.at: Callable[[int, str], None] = lambda step, doing: None
        """Told, while a watchdog is there, what this rank does for which step."""

    def loader(self, *, start_step: int = 0, stop_step: int | None = None) -> TrainLoader:
        """This rank's batches of the steps from `start_step` on."""
        recipe = self.request.recipe
        return TrainLoader(
            self.dataset,
            recipe.data,
            others=self.mixture.datasets[1:],
            batch_size=recipe.train.batch_size,
            seed=recipe.train.seed,
            rank=self.world.rank,
            size=self.world.size,
            start_step=start_step,
            stop_step=stop_step,
            threads=self.request.compute.loader_workers,
            cache=self.cache,
        )

    def state(self) -> dict[str, Tensor]:
        """All tensors a bit-equal continuation needs, by flat name."""
        tensors = {f"model/{name}": value for name, value in self.objective.state_dict().items()}
        tensors |= {f"optim/{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        if self.ema is not None:
            tensors |= {f"ema/{name}": value for name, value in self.ema.shadow.items()}
        return tensors

    def local(self) -> set[str]:
        """Names in `state` of what may differ from rank to rank: the running statistics of a batch norm."""
        return {f"model/{name}" for name, _ in self.objective.named_buffers()}

    def targets(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """Where to read a checkpoint into: weights and averages in place, the optimiser's state into new tensors."""
        state = self.state()
        parameters = dict(self.objective.named_parameters())
        for name, described in checkpoint.tensors.items():
            if name in state:
                continue
            like = parameters.get(name.removeprefix("optim/").partition("/")[2])
            if like is not None and list(like.shape) == described["shape"]:
                state[name] = torch.zeros_like(like)  # sharded as the parameter is
            else:
                state[name] = torch.zeros(described["shape"], device=self.world.device)
        return state

    def restore(self, progress: Progress, tensors: dict[str, Tensor]) -> None:
        """Continue from what was read into `targets`."""
        self.progress = progress
        load_optimizer_tensors(self.optimizer, _under("optim/", tensors))

    def product(self) -> dict[str, Tensor]:
        """The state of the model that is kept."""
        return dict(self.objective.product.state_dict())

    def card(self) -> ModelCard:
        """What has to be known to use the weights."""
        recipe, product = self.request.recipe, self.objective.product
        return ModelCard(
            model=product.config,
            image_size=product.image_size,
            num_classes=product.num_classes,
            classes=self.classes if product.num_classes else (),
            recipe=recipe,
            dataset=self.dataset.digest,
            resize=recipe.eval.resize,
        )


def cache_of(compute: Compute) -> CacheConfig:
    """The limits of a worker's cache of remote shards."""
    folder = None if compute.cache_dir is None else Path(compute.cache_dir)
    return CacheConfig(folder=folder, limit=round(compute.cache_gb * 2**30))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _teacher(request: TrainRequest, classes: tuple[str, ...]) -> Classifier | None:
    if request.teacher is None or request.teacher_outputs is not None:
        return None
    return load_teacher(request.teacher, classes)
