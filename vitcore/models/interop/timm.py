"""Weights of other libraries in our models.

timm's names are ours (see `vitcore.models.vit`), so that ``model.state_dict()`` is timm's state dict as it stands;
what has to be established is that timm's model computes the same thing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.build import build_with
from vitcore.models.vit import VisionTransformer
from vitcore.recipe import DeitConfig, VitConfig

NORM_EPS = 1e-6
_HEAD_WIDTH = 64
_HALF = (0.5, 0.5, 0.5)


def from_timm(
    source: nn.Module | Mapping[str, Tensor],
    *,
    heads: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> VisionTransformer:
    """Our ViT (a `DeiT` where there is a distillation token) with the weights of a timm model or its state dict.

    Args:
        source: a timm ``VisionTransformer`` or ``VisionTransformerDistilled``, or its state dict.
        heads: attention heads, which a state dict does not tell; default: the model's, or channels of 64 each.
        mean: statistics the input is normalised with; default: those of the model's ``pretrained_cfg``, else 0.5.
        std: likewise.
    Raises:
        RequestError: the model has parts ours has not (the sentence names its parameters), or computes otherwise.
    """
    if isinstance(source, nn.Module):
        check_computation(source)
        told: Mapping[str, Any] = getattr(source, "pretrained_cfg", None) or {}
        heads = heads or heads_of(source)
        mean, std = mean or told.get("mean"), std or told.get("std")
        source = source.state_dict()
    config, num_classes, image_size = _describe(source, heads, mean or _HALF, std or _HALF)
    model = build_with(
        config, source, num_classes=num_classes, image_size=image_size, source="the weights of the timm model"
    )
    assert isinstance(model, VisionTransformer)
    return model


def _describe(
    state: Mapping[str, Tensor],
    heads: int | None,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> tuple[VitConfig | DeitConfig, int, int]:
    """Read architecture, class count and image size off the shapes."""
    needed = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight", "head.weight")
    missing = [name for name in needed if name not in state]
    if missing:
        raise RequestError(f"the weights are not those of a timm ViT with a class head: missing {', '.join(missing)}")
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    blocks = {int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}
    prefix = ("cls_token" in state) + ("dist_token" in state)
    kind = DeitConfig if "dist_token" in state else VitConfig
    tree = {
        "patch": patch,
        "width": width,
        "depth": max(blocks) + 1,
        "heads": heads or max(width // _HEAD_WIDTH, 1),
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "pooling": "token" if prefix else "mean",
        "mean": mean,
        "std": std,
    }
    grid = round((state["pos_embed"].shape[1] - prefix) ** 0.5)
    return kind.model_validate(tree), state["head.weight"].shape[0], grid * patch


def heads_of(model: nn.Module) -> int:
    """Attention heads of a timm ViT."""
    attention: Any = model.get_submodule("blocks.0.attn")
    return int(attention.num_heads)


def check_computation(model: nn.Module) -> None:
    """Refuse a timm model that computes otherwise than ours in a way its parameters' names do not show.

    Raises:
        RequestError: no ViT, or another pooling, activation or norm epsilon.
    """
    if type(model).__name__ not in {"VisionTransformer", "VisionTransformerDistilled"}:
        raise RequestError(f"timm's {type(model).__name__} has no counterpart here; give a ViT or a DeiT")
    has_class_token = getattr(model, "cls_token", None) is not None
    pooling = getattr(model, "global_pool", None)
    if pooling != ("token" if has_class_token else "avg"):
        token = "a" if has_class_token else "no"
        raise RequestError(f"timm's global_pool={pooling!r} with {token} class token has no counterpart here")
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and module.eps != NORM_EPS:
            raise RequestError(f"timm's {name} has epsilon {module.eps:g}; only {NORM_EPS:g} is supported")
        if name.endswith("mlp.act") and not (isinstance(module, nn.GELU) and module.approximate == "none"):
            raise RequestError(f"timm's {name} is {module}; only the exact GELU is supported")
