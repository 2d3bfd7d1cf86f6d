"""Any network as a model that can be asked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.asked import Asked
from vitcore.models.pretrained import Pretrained
from vitcore.models.references.card import with_card
from vitcore.recipe import AskedConfig

_IMAGES = 2  # asked with more than one, so that rows cannot be mistaken for columns
_DIMENSIONS = 2


def wrap(
    net: nn.Module,
    *,
    image_size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    classes: Sequence[str] = (),
    resize: int | None = None,
    head: bool = True,
    name: str = "the network",
) -> Pretrained:
    """A network of somebody else's making as a model that can be asked: a teacher, or one to be measured.

    A function behind an ``import:`` reference returns what this gives.

    Args:
        net: a module whose answer to normalised images (B, 3, H, W) is one tensor, a row an image.
        image_size: pixels along a side of an input.
        mean: channel means subtracted from pixels in [0, 1].
        std: channel deviations pixels are divided by.
        classes: name of each class. A teacher needs them: they must be the dataset's.
        resize: short side before the centre crop, in pixels; default: image size ÷ 0.875.
        head: whether the answer holds logits; false: features.
        name: what errors call it.
    Raises:
        RequestError: the answer is no such tensor, or has another number of columns than there are names.
    """
    columns = _columns(net.eval(), image_size, name)
    config = AskedConfig(name=name, mean=mean, std=std)
    model = Asked(net, config, image_size, columns, head=head).eval()
    if classes and len(classes) != model.num_classes:
        raise RequestError(f"{name} has {model.num_classes} logits but {len(classes)} class names")
    return with_card(model, tuple(classes), resize)


@torch.no_grad()
def _columns(net: nn.Module, image_size: int, name: str) -> int:
    """Length of a row of what the network answers; asked once, so that a wrong one fails before training begins."""
    like = next(net.parameters(), torch.empty(0))
    answer = net(torch.zeros(_IMAGES, 3, image_size, image_size, device=like.device, dtype=like.dtype))
    if not isinstance(answer, Tensor) or answer.dim() != _DIMENSIONS or len(answer) != _IMAGES:
        found = f"a tensor of shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        raise RequestError(f"{name} answers two images with {found}; one row of numbers for each is needed")
    return answer.shape[1]
