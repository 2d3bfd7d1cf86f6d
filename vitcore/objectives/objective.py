"""The contract between a way of learning and the one loop that trains them all.

Legend: S slots of a micro-batch, K classes, C channels, H height, W width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcore.data.loading.batch import Inputs
from vitcore.models.classifier import Classifier
from vitcore.recipe import NormalizeConfig


class Terms(NamedTuple):
    """What a micro-batch contributes; sums, not means, so that accumulation and uneven ranks stay exact."""

    loss: Tensor
    """Σ weight × loss, with gradient"""
    weight: Tensor
    """Σ weight"""
    metrics: dict[str, Tensor]
    """name → Σ weight × value, detached"""


class Normalize:
    """Pixels in [0, 1] → (pixel − mean) ÷ std, with one network's own statistics."""

    def __init__(self, config: NormalizeConfig, device: torch.device) -> None:
        self._mean_C11 = torch.tensor(config.mean, device=device).view(-1, 1, 1)
        self._std_C11 = torch.tensor(config.std, device=device).view(-1, 1, 1)

    def __call__(self, images_SCHW: Tensor) -> Tensor:
        """Normalised copy of the images."""
        return (images_SCHW - self._mean_C11) / self._std_C11


class Frozen:
    """A network that only answers (a teacher). Not a module: it has no place in checkpoints, DDP or the optimiser."""

    def __init__(self, model: Classifier, device: torch.device) -> None:
        self._model = model.to(device).eval().requires_grad_(False)
        self._normalize = Normalize(model.config, device)

    def __call__(self, images_SCHW: Tensor) -> Tensor:
        """Logits [S, K] of pixels in [0, 1], without gradient."""
        with torch.no_grad():
            logits_SK: Tensor = self._model(self._normalize(images_SCHW))
        return logits_SK


class Objective(nn.Module, ABC):
    """A model and what it is asked to learn. The loop knows nothing else about either."""

    def __init__(self, model: Classifier, device: torch.device) -> None:
        super().__init__()
        self.model: Classifier = model.to(device)
        self.normalize = Normalize(model.config, device)

    @abstractmethod
    def forward(self, inputs: Inputs) -> Terms:
        """The loss of a micro-batch. Rows of weight 0 contribute nothing."""

    def predict(self, images_SCHW: Tensor) -> Tensor:
        """Logits [S, K] of pixels in [0, 1], as the trained model will give them."""
        logits_SK: Tensor = self.model(self.normalize(images_SCHW))
        return logits_SK

    def after_step(self, step: int, total: int) -> None:
        """Called after each optimiser step: where momentum networks and centres move. Nothing, unless overridden."""


def mixed_targets(inputs: Inputs, classes: int, smoothing: float) -> Tensor:
    """Target distribution [S, K]: label and Mixup partner by λ, then smoothed (1512.00567, section 7)."""
    own_SK = F.one_hot(inputs.labels_S.clamp_min(0), classes)
    partner_SK = F.one_hot(inputs.partners_S.clamp_min(0), classes)
    target_SK = own_SK * inputs.lam_S[:, None] + partner_SK * (1 - inputs.lam_S[:, None])
    return target_SK * (1 - smoothing) + smoothing / classes


def soft_cross_entropy(logits_SK: Tensor, target_SK: Tensor, class_weight_K: Tensor) -> Tensor:
    """−Σ_k weight_k · target_k · log softmax(logits)_k, one value [S] a slot, in fp32."""
    return -(target_SK * class_weight_K * F.log_softmax(logits_SK.float(), dim=1)).sum(1)


def class_weights(mode: str, counts: list[int], device: torch.device) -> Tensor:
    """Weights [K] of the classes: ones, or N ÷ (K · n_k) for ``balanced``."""
    counts_K = torch.tensor(counts, dtype=torch.float32, device=device)
    if mode == "none":
        return torch.ones_like(counts_K)
    return counts_K.sum() / (len(counts) * counts_K.clamp_min(1))
