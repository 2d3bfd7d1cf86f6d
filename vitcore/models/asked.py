"""A network of somebody else's making that is only asked: a teacher, or a model to be measured."""

from __future__ import annotations

from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.classifier import Classifier
from vitcore.recipe import AskedConfig


class Asked(Classifier):
    """Any module that turns normalised images (B, 3, H, W) into logits (B, K), or into features (B, D).

    It cannot be trained, adapted or kept: nothing here knows how to build it again.

    Args:
        net: the module; not copied.
        config: what it is called, and the statistics its input is normalised with.
        image_size: pixels along a side of an input.
        columns: length of a row of its answer.
        head: whether that row holds logits; else features.
    """

    config: AskedConfig

    def __init__(self, net: nn.Module, config: AskedConfig, image_size: int, columns: int, *, head: bool) -> None:
        super().__init__()
        self.net, self.config, self.image_size = net, config, image_size
        self.num_classes, self.width, self.num_layers = columns if head else 0, columns, 0

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """What the network says (B, K), or its features (B, D).

        Raises:
            RequestError: the images are not of `image_size`.
        """
        height, width = images_BCHW.shape[-2:]
        if (height, width) != (self.image_size, self.image_size):
            raise RequestError(
                f"the images are {height} x {width} pixels but {self.config.name} takes {self.image_size} x "
                f"{self.image_size}: set data.image_size to {self.image_size}"
            )
        said_BK: Tensor = self.net(images_BCHW)
        return said_BK

    def allow_any_size(self) -> None:
        """It cannot: what it does with another size is not known."""
        raise self._refusal("take images of several sizes")

    def layer_of(self, name: str) -> int:
        """All of it is one layer."""
        self.get_parameter(name)
        return 0

    def undecayed(self) -> set[str]:
        """None, since nothing is trained."""
        return set()

    def head_parameters(self) -> tuple[str, ...]:
        """None that are known."""
        return ()

    def reset_head(self, num_classes: int) -> None:
        """It cannot: where its head is is not known."""
        raise self._refusal("get another head")

    def state_for(self, image_size: int) -> dict[str, Tensor]:
        """It cannot be built again, for whatever size."""
        raise self._refusal("be trained or adapted")

    def _refusal(self, what: str) -> RequestError:
        return RequestError(f"{self.config.name} is only asked and cannot {what}; it can be a teacher, or be evaluated")


def refuse_to_build(config: AskedConfig, num_classes: int, image_size: int) -> Classifier:
    """Stands where other architectures have their class.

    Raises:
        RequestError: always.
    """
    raise RequestError(
        f"{config.name} is only asked: a model of {num_classes} classes for {image_size} pixels cannot be built of it"
    )
