"""What everything that can be trained, kept and loaded has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from vitcore.recipe import ModelConfig


class Model(nn.Module, ABC):
    """A network that sees normalised images.

    Attributes:
        config: the architecture, with the statistics (`mean`, `std`) its input is normalised with.
        image_size: height and width of an input, in pixels.
        num_classes: K, length of a row of logits; 0 for a model without a head.
        num_layers: layer number of the last layer; see `layer_of`.
    """

    config: ModelConfig
    image_size: int
    num_classes: int
    num_layers: int

    @abstractmethod
    def forward(self, images_BCHW: Tensor) -> Tensor:
        """What the model says of normalised float images (B, 3, H, W), a row each."""

    @abstractmethod
    def layer_of(self, name: str) -> int:
        """Depth of the parameter `name`, from 0 (stem) to `num_layers` (head), for layer-wise learning rates.

        Raises:
            KeyError: the model has no such parameter.
        """

    @abstractmethod
    def undecayed(self) -> set[str]:
        """Names of the parameters of two and more dimensions that weight decay must leave alone."""

    def state_for(self, image_size: int) -> dict[str, Tensor]:
        """The state dict of the same model for images of another size; unless overridden, weights fit any size.

        Raises:
            RequestError: the model cannot have that size.
        """
        return dict(self.state_dict())
