"""What timm's Mixer and PVT v2 have in common: sizes read off shapes, and what computes otherwise refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.classifier import Classifier

Statistics = tuple[float, float, float]

_PLAIN = frozenset(
    {"Conv2d", "Dropout", "DropPath", "GELU", "Identity", "LayerNorm", "Linear", "ModuleList", "Sequential"}
)
_CROP = 0.875


def shape_in(state: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    """Shape of a tensor.

    Raises:
        RequestError: there is no tensor of that name, or it has another number of dimensions.
    """
    if name not in state:
        raise RequestError(f"the weights are not of this timm architecture: missing {name}")
    shape = tuple(state[name].shape)
    if len(shape) != dimensions or not all(shape):
        raise RequestError(f"the weights are not of this timm architecture: {name} has the shape {shape}")
    return shape


def statistics_of(described: nn.Module | None, mean: Statistics | None, std: Statistics | None) -> dict[str, Any]:
    """The given statistics; where there are none those of the model's ``pretrained_cfg``; else none of that name."""
    told: Mapping[str, Any] = getattr(described, "pretrained_cfg", None) or {}
    found = {"mean": mean or told.get("mean"), "std": std or told.get("std")}
    return {name: value for name, value in found.items() if value}


def check_parts(model: nn.Module, known: set[str], epsilon: Callable[[str], float]) -> None:
    """Refuse a timm model that computes otherwise than ours in a way its parameters' names need not show.

    Args:
        model: timm's.
        known: class names of the modules it may consist of, beside PyTorch's plain layers.
        epsilon: from the name of a norm to the epsilon it must have.
    Raises:
        RequestError: another kind of module, another activation, norm epsilon, pooling or dropout; the sentence names
            it.
    """
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind not in known | _PLAIN:
            raise RequestError(f"timm's {name or 'model'} is a {kind}, which has no counterpart here")
        if isinstance(module, nn.GELU) and module.approximate != "none":
            raise RequestError(f"timm's {name} is {module}; only the exact GELU is supported")
        if isinstance(module, nn.LayerNorm) and module.eps != epsilon(name):
            raise RequestError(f"timm's {name} has epsilon {module.eps:g}; only {epsilon(name):g} is supported")
        if isinstance(module, nn.Dropout) and module.p and name.endswith(("head_drop", "attn_drop")):
            raise RequestError(f"timm's {name} has the rate {module.p:g}, which ours has not; build its model without")
    pooling = getattr(model, "global_pool", None)
    if pooling != "avg":
        raise RequestError(f"timm's global_pool={pooling!r} has no counterpart here; only 'avg' is supported")


def described_for_timm(model: Classifier, stem: str, *, fixed_size: bool) -> dict[str, Any]:
    """What timm's ``config.json`` says of every architecture.

    Args:
        model: ours.
        stem: name of its first convolution.
        fixed_size: whether the model takes images of one size alone.
    """
    return {
        "num_classes": model.num_classes,
        "num_features": model.width,
        "global_pool": "avg",
        "pretrained_cfg": {
            "input_size": [3, model.image_size, model.image_size],
            "fixed_input_size": fixed_size,
            "interpolation": "bicubic",
            "crop_pct": _CROP,
            "crop_mode": "center",
            "mean": list(model.config.mean),
            "std": list(model.config.std),
            "num_classes": model.num_classes,
            "pool_size": None,
            "custom_load": False,
            "first_conv": stem,
            "classifier": "head",
        },
    }
