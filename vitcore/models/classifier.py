"""What every model offers to objectives, the training loop and evaluation, whatever its architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from vitcore.recipe import CnnConfig, DeitConfig, VitConfig


class Classifier(nn.Module, ABC):
    """Normalised images in, class logits out.

    Attributes:
        config: the architecture, with the statistics (`mean`, `std`) its input is normalised with.
        num_classes: K, length of a row of logits.
        image_size: height and width of an input, in pixels.
        num_layers: layer number of the head; see `layer_of`.
    """

    config: VitConfig | DeitConfig | CnnConfig
    num_classes: int
    image_size: int
    num_layers: int

    @abstractmethod
    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, K) of normalised float images (B, 3, H, W)."""

    @abstractmethod
    def layer_of(self, name: str) -> int:
        """Depth of the parameter `name`, from 0 (stem) to `num_layers` (head), for layer-wise learning rates.

        Raises:
            KeyError: the model has no such parameter.
        """

    @abstractmethod
    def undecayed(self) -> set[str]:
        """Names of the parameters of two and more dimensions that weight decay must leave alone."""

    @abstractmethod
    def head_parameters(self) -> tuple[str, ...]:
        """Names of the parameters whose first dimension is K."""

    @abstractmethod
    def reset_head(self, num_classes: int) -> None:
        """Replace the head(s) in place by zero-initialised ones for `num_classes` classes."""


def zero_linear(like: nn.Linear, num_classes: int) -> nn.Linear:
    """A head of `num_classes` rows, all zero, where `like` stood.

    Fine-tuning starts from zero logits (2010.11929, section 3.2): the first steps move the new head before its random
    weights could disturb what was pre-trained.
    """
    head = nn.Linear(like.in_features, num_classes, device=like.weight.device, dtype=like.weight.dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
