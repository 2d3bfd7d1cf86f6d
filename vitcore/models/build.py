"""From a configuration to a model: with fresh weights, or with given ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vitcore.errors import RequestError
from vitcore.models.asked import refuse_to_build
from vitcore.models.classifier import Classifier
from vitcore.models.clip import Clip
from vitcore.models.cnn import Cnn
from vitcore.models.deit import DeiT
from vitcore.models.hybrid import Hybrid
from vitcore.models.mixer import Mixer
from vitcore.models.model import Model
from vitcore.models.pvt import Pvt
from vitcore.models.t2t import T2tVit
from vitcore.models.vit import VisionTransformer
from vitcore.recipe import (
    AskedConfig,
    BackboneConfig,
    ClipConfig,
    CnnConfig,
    DeitConfig,
    HybridConfig,
    MixerConfig,
    ModelConfig,
    PvtConfig,
    T2tConfig,
    VitConfig,
)

_NAMED = 6
_BACKBONES: dict[type[BackboneConfig], Callable[[Any, int, int], Classifier]] = {
    VitConfig: VisionTransformer,
    DeitConfig: DeiT,
    HybridConfig: Hybrid,
    CnnConfig: Cnn,
    MixerConfig: Mixer,
    T2tConfig: T2tVit,
    PvtConfig: Pvt,
    AskedConfig: refuse_to_build,
}


def build(config: ModelConfig, *, num_classes: int, image_size: int) -> Model:
    """A model with freshly drawn weights (from torch's global generator).

    Args:
        config: the architecture.
        num_classes: length of a row of logits; 0: no head. An image and a text model never has one.
        image_size: height and width of an input, in pixels.
    Raises:
        RequestError: the configuration cannot be built (unknown network, patch that does not divide the image).
    """
    if isinstance(config, ClipConfig):
        return Clip(config, build_backbone(config.image, num_classes=0, image_size=image_size))
    return build_backbone(config, num_classes=num_classes, image_size=image_size)


def build_backbone(config: BackboneConfig, *, num_classes: int, image_size: int) -> Classifier:
    """The same for what sees images alone."""
    return _BACKBONES[type(config)](config, num_classes, image_size)


def build_with(
    config: ModelConfig,
    state: Mapping[str, Tensor],
    *,
    num_classes: int,
    image_size: int,
    source: str = "the weights",
) -> Model:
    """A model that owns copies of the tensors of `state`; no random number is drawn.

    Floating tensors become float32. The model is built without memory first, so that an untrusted configuration
    cannot ask for more than the file holds.

    Raises:
        RequestError: a tensor is missing, unknown or of another shape; the sentence names it.
    """
    try:
        with torch.device("meta"):
            model = build(config, num_classes=num_classes, image_size=image_size)
    except RuntimeError as error:  # sizes beyond what a tensor can have
        raise RequestError(f"{source} are not of this architecture, which cannot be built: {error}") from None
    expected = model.state_dict()
    _check(expected, state, source)
    owned = {name: state[name].detach().clone() for name in expected}
    owned = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in owned.items()}
    model.load_state_dict(owned, assign=True)
    return model


def _check(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    unknown = [name for name in state if name not in expected]
    missing = [name for name in expected if name not in state]
    if unknown or missing:
        faults = [f"{kind} {_some(names)}" for kind, names in (("unknown", unknown), ("missing", missing)) if names]
        raise RequestError(f"{source} are not of this architecture: {'; '.join(faults)}")
    for name, tensor in expected.items():
        if tensor.shape != state[name].shape:
            found, wanted = tuple(state[name].shape), tuple(tensor.shape)
            raise RequestError(f"{source} are not of this architecture: {name} is {found}, expected {wanted}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
