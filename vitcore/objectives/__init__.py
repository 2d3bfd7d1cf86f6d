"""What a model is asked to learn; `build` makes the objective a recipe names."""

from __future__ import annotations

from vitcore.errors import RequestError
from vitcore.models.classifier import Classifier
from vitcore.models.clip import Clip
from vitcore.models.model import Model
from vitcore.objectives.classify import Classify
from vitcore.objectives.contrast import Contrast
from vitcore.objectives.dino import Dino
from vitcore.objectives.distill import Distill
from vitcore.objectives.mae import Mae
from vitcore.objectives.moco import Moco
from vitcore.objectives.objective import Coupled, Embeddings, Frozen, Objective, Terms
from vitcore.recipe import (
    ClassifyConfig,
    ContrastConfig,
    DinoConfig,
    DistillConfig,
    MaeConfig,
    MocoConfig,
    ObjectiveConfig,
)
from vitcore.world import World

__all__ = ["Coupled", "Embeddings", "Frozen", "Objective", "Terms", "build"]


def build(
    config: ObjectiveConfig,
    model: Model,
    *,
    teacher: Classifier | None,
    class_counts: list[int],
    world: World,
    stored: bool = False,
) -> Objective:
    """The objective of a recipe, on the world's device.

    Args:
        config: the recipe's objective.
        model: what is trained.
        teacher: gives logits [S, K] of the same classes in the same order; needed by ``distill`` alone.
        class_counts: samples a class in the training split, in the order of the dataset's classes.
        world: this process's place among the workers.
        stored: the teacher's outputs come with the batches, so that no teacher is needed.
    Raises:
        RequestError: distillation without a teacher, or the model is of a kind that the objective does not train.
    """
    if isinstance(config, ClassifyConfig | DistillConfig):
        assert isinstance(model, Classifier)
        if isinstance(config, ClassifyConfig):
            return Classify(config, model, class_counts, world)
        if teacher is None and not stored:
            raise RequestError("this recipe distils from a teacher; name one with --teacher")
        return Distill(config, model, None if teacher is None else Frozen(teacher, world.device), class_counts, world)
    if isinstance(config, ContrastConfig) and isinstance(model, Clip):
        return Contrast(config, model, world)
    if isinstance(config, MaeConfig):
        return Mae(config, model, world)
    if isinstance(model, Classifier):
        if isinstance(config, MocoConfig):
            return Moco(config, model, world)
        if isinstance(config, DinoConfig):
            return Dino(config, model, world)
    raise RequestError(f"the objective {config.kind} cannot train a {model.config.kind}")
