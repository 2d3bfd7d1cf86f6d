"""Public weights with a card, as if they were a model of our own."""

from __future__ import annotations

from vitcore.models.model import Model
from vitcore.models.pretrained import ModelCard, Pretrained, weights_digest

_IMAGENET_CLASSES = 1000


def with_card(model: Model, classes: tuple[str, ...] = (), resize: int | None = None) -> Pretrained:
    """The model in evaluation mode, its card and digest.

    Args:
        model: takes the place it is given in; not copied.
        classes: name of each class; none where they are not known.
        resize: short side before the centre crop, in pixels; default: as `ModelCard.resize`.
    """
    card = ModelCard(
        model=model.config,
        image_size=model.image_size,
        num_classes=model.num_classes,
        classes=classes,
        resize=resize,
    )
    return Pretrained(model.eval(), card, weights_digest(model.state_dict()))


def imagenet_names(num_classes: int) -> tuple[str, ...]:
    """ImageNet-1k's class names, in the order every library has them; none for another class count."""
    if num_classes != _IMAGENET_CLASSES:
        return ()
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])
