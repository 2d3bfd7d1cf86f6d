"""DeiT's distillation through attention (Touvron et al., 2012.12877, section 4).

The class token's head learns the labels, the distillation token's head learns the teacher, both on the same (mixed)
view; a student with one head learns both through it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vitcore.data.loading.batch import Inputs
from vitcore.errors import RequestError
from vitcore.models.classifier import Classifier
from vitcore.models.deit import DeiT
from vitcore.objectives.objective import (
    Frozen,
    Objective,
    Terms,
    class_weights,
    mixed_targets,
    soft_cross_entropy,
)
from vitcore.recipe import DistillConfig
from vitcore.world import World


class Distill(Objective):
    """(1 − α) · cross-entropy with the labels + α · the teacher's term."""

    def __init__(
        self,
        config: DistillConfig,
        model: Classifier,
        teacher: Frozen | None,
        class_counts: list[int],
        world: World,
    ) -> None:
        super().__init__(model, world)
        if not 0 <= config.alpha <= 1:
            raise RequestError(f"objective.alpha is {config.alpha}; the teacher's share must lie between 0 and 1")
        self._config = config
        self._teacher = teacher
        self._class_weight_K = class_weights(config.class_weight, class_counts, world.device)

    def forward(self, inputs: Inputs) -> Terms:
        """See `Objective.forward`."""
        normalised = self.normalize(inputs.images_SCHW)
        if isinstance(self.model, DeiT):
            class_SK, distill_SK = self.model.heads(normalised)
        else:
            class_SK = distill_SK = self.model(normalised)
        teacher_SK, decision_S = self._told(inputs, class_SK.shape[1])
        target_SK = mixed_targets(inputs, class_SK.shape[1], self._config.label_smoothing)
        label_S = soft_cross_entropy(class_SK, target_SK, self._class_weight_K)
        teacher_S = self._teacher_term(distill_SK, teacher_SK, decision_S)
        loss_S = (1 - self._config.alpha) * label_S + self._config.alpha * teacher_S
        weights_S = inputs.weights_S
        agree_S = (distill_SK.detach().argmax(1) == decision_S).float()
        hit_S = ((class_SK + distill_SK).detach().argmax(1) == target_SK.argmax(1)).float()
        return Terms(
            loss=(weights_S * loss_S).sum(),
            weight=weights_S.sum(),
            metrics={
                "top1": (weights_S * hit_S).sum(),
                "loss_labels": (weights_S * label_S).sum().detach(),
                "loss_teacher": (weights_S * teacher_S).sum().detach(),
                "teacher_agreement": (weights_S * agree_S).sum(),
            },
        )

    def _told(self, inputs: Inputs, classes: int) -> tuple[Tensor, Tensor]:
        """The teacher's logits [S, K] for the (mixed) views and its decisions [S]: replayed where they were stored
        (the decision is exact, whatever rounding did to the logits), else asked for.
        """
        if inputs.teacher is not None:
            return inputs.teacher.dense(classes), inputs.teacher.classes_SK[:, 0]
        assert self._teacher is not None, "neither a teacher nor its outputs"
        teacher_SK = self._teacher(inputs.images_SCHW).float()
        return teacher_SK, teacher_SK.argmax(1)

    def _teacher_term(self, distill_SK: Tensor, teacher_SK: Tensor, decision_S: Tensor) -> Tensor:
        """Eq. 3 (hard: cross-entropy with the teacher's decision) or eq. 2 (soft: τ² · KL), one value [S] a slot."""
        if self._config.mode == "hard":
            decision_SK = F.one_hot(decision_S, teacher_SK.shape[1])
            return soft_cross_entropy(distill_SK, decision_SK, self._class_weight_K)
        tau = self._config.tau
        student_SK = F.log_softmax(distill_SK.float() / tau, dim=1)
        target_SK = F.log_softmax(teacher_SK / tau, dim=1)
        return tau**2 * F.kl_div(student_SK, target_SK, reduction="none", log_target=True).sum(1)
