"""What every architecture that sees images alone offers to objectives, the training loop and evaluation."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.model import Model
from vitcore.recipe import BackboneConfig


class Classifier(Model):
    """Features of an image, and with a head its class logits.

    Attributes:
        width: D, length of a row of features: of what the head reads.
    """

    config: BackboneConfig
    width: int

    @abstractmethod
    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, K); without a head, the features (B, D) that one would read."""

    @abstractmethod
    def allow_any_size(self) -> None:
        """From now on also take images of other sizes than `image_size` (DINO's small crops).

        Raises:
            RequestError: the architecture cannot.
        """

    @abstractmethod
    def head_parameters(self) -> tuple[str, ...]:
        """Names of the parameters whose first dimension is K; none without a head."""

    @abstractmethod
    def reset_head(self, num_classes: int) -> None:
        """Replace the head(s) in place by zero-initialised ones for `num_classes` classes; by none for 0."""


def check_parameter(model: nn.Module, name: str) -> None:
    """Whether the model has a parameter of that name, which may only look like one of its.

    Raises:
        KeyError: it has not.
    """
    try:
        model.get_parameter(name)
    except AttributeError:
        raise KeyError(name) from None


def check_size(model: Model, height: int, width: int) -> None:
    """Whether images of that many pixels are of the size that the model takes.

    Raises:
        RequestError: they are not.
    """
    size = model.image_size
    if height != size or width != size:
        raise RequestError(
            f"the images are {height} x {width} pixels but this model takes {size} x {size}: "
            "resize them, or adapt the model to their size"
        )


def make_head(width: int, num_classes: int) -> nn.Module:
    """A linear head of `num_classes` rows; for 0 classes one that passes the features on."""
    return nn.Linear(width, num_classes) if num_classes else nn.Identity()


def zero_head(width: int, num_classes: int, like: nn.Parameter) -> nn.Module:
    """A head whose rows are all zero, on the device and in the type of `like`.

    Fine-tuning starts from zero logits (2010.11929, section 3.2): the first steps move the new head before its random
    weights could disturb what was pre-trained.
    """
    head = make_head(width, num_classes).to(like.device, like.dtype)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return head
