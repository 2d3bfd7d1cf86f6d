"""The training that is planned: its networks, built without memory where nothing is loaded, and what it shows them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from vitcore import objectives
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.loading.batch import Batch, Mix, TeacherRows
from vitcore.data.loading.mixture import Mixture
from vitcore.models import Classifier, Model, build
from vitcore.models.clip import Clip
from vitcore.models.tokenizer import Tokenizer
from vitcore.objectives import Objective
from vitcore.recipe import ContrastConfig, DistillConfig, ParentConfig, Recipe
from vitcore.train.request import TrainRequest, open_dataset, open_mixture
from vitcore.train.student import student
from vitcore.train.teacher import load_teacher
from vitcore.world import World

STORED_TOP = 10
"""Logits of a view that are stored of a teacher that is not named, as `vit distill --store-teacher` does."""
_LOOKED_AT = 256  # photographs whose captions are measured
_META = torch.device("meta")


@dataclass(frozen=True, slots=True)
class Captions:
    """Of the first photographs that are trained on; measured."""

    tokens: int
    """What the text tower sees of a batch: as many tokens as its longest caption needs."""
    each: float
    """Captions of a photograph."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A training before it runs.

    `model` has no weights in memory (device ``meta``), unless it continues another one.
    """

    request: TrainRequest
    mixture: Mixture
    model: Model
    teacher: Classifier | None
    captions: Captions | None

    @property
    def recipe(self) -> Recipe:
        """What is learned."""
        return self.request.recipe

    @property
    def dataset(self) -> Dataset:
        """What is trained on, or the first of several; it is validated on."""
        return self.mixture.datasets[0]

    @property
    def fewest(self) -> int:
        """Training samples of the smallest dataset: more lanes there cannot be."""
        return min(each.split(self.recipe.data.train_split).samples for each in self.mixture.datasets)

    def objective(self, ranks: int) -> Objective:
        """The objective of one of `ranks` ranks, without memory."""
        split = self.recipe.data.train_split
        with _META:
            return objectives.build(
                self.recipe.objective,
                self.model,
                teacher=self.teacher,
                class_counts=self.mixture.class_counts(split),
                world=World(0, ranks, _META),
                stored=self.teacher is None,
            )

    def batch(self, slots: int, lane_size: int) -> Batch:
        """A rank's batch of some slots: shapes and types are those of the loader, contents are none."""
        recipe = self.recipe
        data, classes = recipe.data, len(self.mixture.classes)
        further = [view.image_size or data.image_size for view in data.views for _ in range(view.count)]
        first, *more = (torch.empty(slots, 3, size, size, dtype=torch.uint8) for size in (data.image_size, *further))
        mixed = data.augment.mixup or data.augment.cutmix
        told = isinstance(recipe.objective, DistillConfig) and self.teacher is None
        k = min(STORED_TOP, classes)
        ids_S = torch.zeros(slots, dtype=torch.int64)
        return Batch(
            step=0,
            images_SCHW=first,
            labels_S=ids_S,
            weights_S=torch.ones(slots),
            samples_S=ids_S,
            lane_size=lane_size,
            mix=Mix(torch.ones(slots), torch.zeros(slots, 4, dtype=torch.int64)) if mixed else None,
            captions=("a caption",) * slots if data.captions else None,
            more_views=tuple(more),
            teacher=TeacherRows(torch.zeros(slots, k), ids_S[:, None].repeat(1, k), torch.zeros(slots))
            if told
            else None,
        )


def subject(request: TrainRequest) -> Subject:
    """The training of a request.

    Raises:
        RequestError: recipe, dataset and models do not fit together, or a parent is needed to say what is trained.
    """
    recipe = request.recipe
    dataset = open_dataset(recipe, request.data)
    mixture = open_mixture(recipe, dataset, request.mixture)
    model = _model(request, mixture.classes)
    teacher = None if request.teacher is None else load_teacher(request.teacher, mixture.classes)
    captions = _captions(dataset, recipe, model) if isinstance(model, Clip) else None
    return Subject(request, mixture, model, teacher, captions)


def _model(request: TrainRequest, classes: tuple[str, ...]) -> Model:
    """The student; a recipe that only locks its image tower says itself how large that is."""
    recipe = request.recipe
    if request.init is not None or isinstance(recipe.model, ParentConfig):
        return student(request, classes)
    with _META:
        if isinstance(recipe.objective, ContrastConfig):
            return build(recipe.model, num_classes=0, image_size=recipe.data.image_size)
        return student(request, classes)


def _captions(dataset: Dataset, recipe: Recipe, model: Clip) -> Captions:
    index = dataset.index(recipe.data.train_split)
    listed = [index.captions(row) for row in range(min(_LOOKED_AT, dataset.split(recipe.data.train_split).samples))]
    texts = [caption for each in listed for caption in each] or [""]
    tokens_SN = model.text.cut(Tokenizer(model.config.text)(texts))
    return Captions(tokens_SN.shape[1], float(np.mean([len(each) for each in listed])))
