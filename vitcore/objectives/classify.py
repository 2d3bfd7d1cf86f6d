"""Supervised classification: cross-entropy with label smoothing, Mixup targets and class weights."""

from __future__ import annotations

from vitcore.data.loading.batch import Inputs
from vitcore.models.classifier import Classifier
from vitcore.objectives.objective import (
    Objective,
    Terms,
    binary_cross_entropy,
    class_weights,
    mixed_targets,
    soft_cross_entropy,
)
from vitcore.recipe import ClassifyConfig
from vitcore.world import World


class Classify(Objective):
    """Cross-entropy between the model's logits [S, K] and the (mixed, smoothed) labels."""

    def __init__(self, config: ClassifyConfig, model: Classifier, class_counts: list[int], world: World) -> None:
        super().__init__(model, world)
        self._config = config
        self._class_weight_K = class_weights(config.class_weight, class_counts, world.device)

    def forward(self, inputs: Inputs) -> Terms:
        """See `Objective.forward`."""
        logits_SK = self.model(self.normalize(inputs.images_SCHW))
        target_SK = mixed_targets(inputs, logits_SK.shape[1], self._config.label_smoothing)
        losses = {"softmax": soft_cross_entropy, "binary": binary_cross_entropy}
        loss_S = losses[self._config.loss](logits_SK, target_SK, self._class_weight_K)
        hit_S = (logits_SK.detach().argmax(1) == target_SK.argmax(1)).float()
        return Terms(
            loss=(inputs.weights_S * loss_S).sum(),
            weight=inputs.weights_S.sum(),
            metrics={"top1": (inputs.weights_S * hit_S).sum()},
        )
