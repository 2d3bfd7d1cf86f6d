"""The contract between a way of learning and the one loop that trains them all.

Legend: S slots of a micro-batch, K classes, C channels, H height, W width, E dimension of an embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcore.data.loading.batch import Inputs
from vitcore.models.classifier import Classifier
from vitcore.models.model import Model
from vitcore.recipe import ModelConfig
from vitcore.world import World


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

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
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
    """A model and what it is asked to learn. The loop knows nothing else about either.

    What is trained beside the model (projectors, decoders) and what follows it (momentum networks, centres) are
    modules and buffers of the objective, so that checkpoints hold them.
    """

    def __init__(self, model: Model, world: World) -> None:
        super().__init__()
        self.model: Model = model.to(world.device)
        self.normalize = Normalize(model.config, world.device)
        self.world = world

    @property
    def product(self) -> Model:
        """The model that is validated and kept: the one that is trained, unless overridden."""
        return self.model

    @abstractmethod
    def forward(self, inputs: Inputs) -> Any:
        """`Terms` of a micro-batch; of a `Coupled` objective its `Embeddings`. Rows of weight 0 contribute nothing."""

    def predict(self, images_SCHW: Tensor) -> Tensor:
        """What the product says of pixels in [0, 1], a row each."""
        said: Tensor = self.product(self.normalize(images_SCHW))
        return said

    def undecayed(self) -> set[str]:
        """Names (as `named_parameters` gives them) of what has two or more dimensions and must not decay."""
        return {f"model.{name}" for name in self.model.undecayed()}

    def before_step(self, step: int, total: int) -> None:
        """Called before step number `step` (from 0) of `total`: where temperatures follow their schedule."""

    def before_update(self, step: int, total: int) -> None:
        """Called when the gradients of step number `step` are complete: where some are dropped."""

    def after_step(self, step: int, total: int) -> None:
        """Called when `step` of `total` steps are done: where momentum networks move and scales are clamped."""


class Embeddings(NamedTuple):
    """What a `Coupled` objective compares over the global batch."""

    rows: tuple[Tensor, ...]
    """(S, …) each: of every slot; with gradient where the loss has one"""
    shared: tuple[Tensor, ...] = ()
    """of no slot: a learned temperature. Here, since under DDP only what leaves `forward` has its gradient summed"""


class Coupled(Objective):
    """An objective whose loss compares the samples of the global batch with each other.

    It says so in two halves, so that the loop can embed micro-batches one after the other and still compare all of
    them (gradient caching, 2101.06983): the memory is a micro-batch's, the negatives are the batch's.
    """

    @abstractmethod
    def forward(self, inputs: Inputs) -> Embeddings:
        """Embeddings of a micro-batch."""

    @abstractmethod
    def couple(self, embeddings: Embeddings, weights_S: Tensor) -> Terms:
        """The loss of this rank's slots, as anchors, against all samples of all ranks; called once a step.

        Its gradient reaches the embeddings of other ranks. Rows of weight 0 are neither anchors nor negatives.
        """


def mixed_targets(inputs: Inputs, classes: int, smoothing: float) -> Tensor:
    """Target distribution [S, K]: label and Mixup partner by λ, then smoothed (1512.00567, section 7)."""
    own_SK = F.one_hot(inputs.labels_S.clamp_min(0), classes)
    partner_SK = F.one_hot(inputs.partners_S.clamp_min(0), classes)
    target_SK = own_SK * inputs.lam_S[:, None] + partner_SK * (1 - inputs.lam_S[:, None])
    return target_SK * (1 - smoothing) + smoothing / classes


def soft_cross_entropy(logits_SK: Tensor, target_SK: Tensor, class_weight_K: Tensor) -> Tensor:
    """−Σ_k weight_k · target_k · log softmax(logits)_k, one value [S] a slot, in fp32."""
    return -(target_SK * class_weight_K * F.log_softmax(logits_SK.float(), dim=1)).sum(1)


def binary_cross_entropy(logits_SK: Tensor, target_SK: Tensor, class_weight_K: Tensor) -> Tensor:
    """The mean over the classes of weight_k · the cross-entropy of sigmoid(logits)_k, one value [S] a slot, in fp32
    (2110.00476, section 3; targets mixed and smoothed as above).
    """
    each_SK = F.binary_cross_entropy_with_logits(logits_SK.float(), target_SK, reduction="none")
    return (class_weight_K * each_SK).mean(1)


def class_weights(mode: str, counts: list[int], device: torch.device) -> Tensor:
    """Weights [K] of the classes: ones, or N ÷ (K · n_k) for ``balanced``."""
    counts_K = torch.tensor(counts, dtype=torch.float32, device=device)
    if mode == "none":
        return torch.ones_like(counts_K)
    return counts_K.sum() / (len(counts) * counts_K.clamp_min(1))
