"""What a model is asked to learn; `build` makes the objective a recipe names."""

from __future__ import annotations

import torch

from vitcore.errors import RequestError
from vitcore.models.classifier import Classifier
from vitcore.objectives.classify import Classify
from vitcore.objectives.distill import Distill
from vitcore.objectives.objective import Frozen, Objective, Terms
from vitcore.recipe import ClassifyConfig, DistillConfig

__all__ = ["Frozen", "Objective", "Terms", "build"]


def build(
    config: ClassifyConfig | DistillConfig,
    model: Classifier,
    *,
    teacher: Classifier | None,
    class_counts: list[int],
    device: torch.device,
) -> Objective:
    """The objective of a recipe, on `device`.

    Args:
        config: the recipe's objective.
        model: the student; gives logits [S, K].
        teacher: gives logits [S, K] of the same classes in the same order; needed by ``distill`` alone.
        class_counts: samples a class in the training split, in the order of the dataset's classes.
        device: where to compute.
    Raises:
        RequestError: distillation without a teacher.
    """
    if isinstance(config, ClassifyConfig):
        return Classify(config, model, class_counts, device)
    if teacher is None:
        raise RequestError("this recipe distils from a teacher; name one with --teacher")
    return Distill(config, model, Frozen(teacher, device), class_counts, device)
