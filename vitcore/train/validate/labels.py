"""Validation by class labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vitcore.data.loading.batch import to_inputs
from vitcore.train.learner import Learner
from vitcore.train.validate.split import evaluation_loader


def by_labels(learner: Learner) -> dict[str, float]:
    """``loss`` (mean cross-entropy), ``top1`` and ``balanced_accuracy`` (mean recall over the classes present) of the
    samples that could be read, and how many could not (``bad_samples``).
    """
    recipe, world = learner.request.recipe, learner.world
    classes = len(learner.classes)
    sums = torch.zeros(2 * classes + 2, dtype=torch.float64, device=world.device)
    hits_K, counts_K, loss, bad = sums[:classes], sums[classes:-2], sums[-2:-1], sums[-1:]
    with evaluation_loader(learner, recipe.eval.split) as loader:
        for batch in loader:
            learner.at(learner.progress.step, "validating")
            bad += len(batch.bad)
            inputs = to_inputs(batch, world.device)
            with learner.precision.autocast():
                logits_SK = learner.objective.predict(inputs.images_SCHW).float()
            weights_S = inputs.weights_S.double()
            loss += (F.cross_entropy(logits_SK, inputs.labels_S.clamp_min(0), reduction="none") * weights_S).sum()
            hit_S = weights_S * (logits_SK.argmax(1) == inputs.labels_S)
            hits_K.index_add_(0, inputs.labels_S.clamp_min(0), hit_S)
            counts_K.index_add_(0, inputs.labels_S.clamp_min(0), weights_S)
    world.sum(sums)
    present_K = counts_K > 0
    total = counts_K.sum().clamp_min(1)
    return {
        "loss": (loss / total).item(),
        "top1": (hits_K.sum() / total).item(),
        "balanced_accuracy": (hits_K[present_K] / counts_K[present_K]).mean().item() if present_K.any() else 0.0,
        "bad_samples": bad.item(),
    }
