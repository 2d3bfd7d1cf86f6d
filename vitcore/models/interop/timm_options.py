"""What a timm ViT computes, read off the module: options that the names and shapes of its parameters do not tell."""

from __future__ import annotations

from typing import Any

from torch import nn

from vitcore.errors import RequestError
from vitcore.models.hybrid import GROUP_EPS, GROUPS, STANDARD_EPS
from vitcore.recipe.model import Activation

_VITS = {"VisionTransformer", "VisionTransformerDistilled"}
_POOLINGS = {"token": "token", "avg": "mean", "map": "map"}
_STEM_PARTS = {
    "Bottleneck",
    "ClassifierHead",
    "DownsampleConv",
    "Dropout",
    "GroupNormAct",
    "Identity",
    "MaxPool2dSame",
    "ReLU",
    "ResNetStage",
    "ResNetV2",
    "SelectAdaptivePool2d",
    "Sequential",
    "StdConv2dSame",
}
_DIGITS = 6  # timm's rates have been float32 on the way


def heads_of(model: nn.Module) -> int:
    """Attention heads of a timm ViT."""
    attention: Any = model.get_submodule("blocks.0.attn")
    return int(attention.num_heads)


def options_of(model: nn.Module) -> dict[str, Any]:
    """Fields of `vitcore.recipe.VitConfig` by which our model computes what a timm ViT does.

    Raises:
        RequestError: no ViT, or an option that has no counterpart here; the sentence names it.
    """
    if _name(model) not in _VITS:
        raise RequestError(f"timm's {_name(model)} has no counterpart here; give a ViT, DeiT, hybrid, Mixer or PVT v2")
    told: Any = model  # attributes of timm's, which has no types
    _refuse_foreign_parts(told)
    rates = _rates(told)
    first = told.blocks[0]
    scale = getattr(first.ls1, "init_values", None)
    return {
        "heads": heads_of(model),
        "pooling": _POOLINGS[told.global_pool],
        "embed_prefix": not told.no_embed_class,
        "activation": _activation(model),
        "norm_eps": _norm_eps(model),
        **({} if scale is None else {"layer_scale": float(scale)}),
        **rates,
    }


def _refuse_foreign_parts(told: Any) -> None:
    distilled = type(told).__name__ == "VisionTransformerDistilled"
    first = told.blocks[0]
    image, patch = _sides(told.patch_embed.img_size), _sides(told.patch_embed.patch_size)
    foreign = {
        f"global_pool={told.global_pool!r}": told.global_pool not in _POOLINGS,
        "pool_include_prefix=True": told.pool_include_prefix,
        "pos_embed='none'": told.pos_embed is None,
        "no_embed_class=True with a distillation token": distilled and told.no_embed_class,
        "reg_tokens with a distillation token": distilled and told.num_reg_tokens > 0,
        "fc_norm=True with a distillation token": distilled and not isinstance(told.fc_norm, nn.Identity),
        f"img_size={image}": image[0] != image[1],
        f"patch_size={patch}": patch[0] != patch[1],
        f"embed_layer={_name(told.patch_embed)}": _name(told.patch_embed) not in {"PatchEmbed", "HybridEmbed"},
        f"block_fn={_name(first)}": _name(first) != "Block",
        f"attn_layer={_name(getattr(first, 'attn', None))}": _name(getattr(first, "attn", None)) != "Attention",
        f"mlp_layer={_name(getattr(first, 'mlp', None))}": _name(getattr(first, "mlp", None)) != "Mlp",
        **_foreign_stem(told.patch_embed),
    }
    for option, present in foreign.items():
        if present:
            raise RequestError(f"timm's {option} has no counterpart here")


def _foreign_stem(embed: Any) -> dict[str, bool]:
    """What a hybrid's stem may be other than ours; other widths and depths show in the shapes."""
    if _name(embed) != "HybridEmbed":
        return {}
    parts: list[Any] = list(embed.backbone.modules())
    strange = sorted({_name(part) for part in parts} - _STEM_PARTS)
    kernels = {getattr(part, "eps", None) for part in parts if isinstance(part, nn.Conv2d)}
    norms = {(part.num_groups, part.eps) for part in parts if isinstance(part, nn.GroupNorm)}
    return {
        f"stem with {', '.join(strange)}": bool(strange),
        f"stem with kernels of another epsilon than {STANDARD_EPS:g}": kernels != {STANDARD_EPS},
        "stem with other group norms": norms != {(GROUPS, GROUP_EPS)},
    }


def _rates(told: Any) -> dict[str, float]:
    """Dropout and stochastic depth; ours has one rate for positions, projections and MLPs, and none elsewhere."""
    block = told.blocks[-1]
    elsewhere = {
        "patch_drop_rate": getattr(told.patch_drop, "prob", 0.0),
        "attn_drop_rate": block.attn.attn_drop.p,
        "drop_rate": told.head_drop.p,
    }
    for option, rate in elsewhere.items():
        if rate:
            raise RequestError(f"timm's {option}={rate:g} has no counterpart here; build its model without")
    if told.pos_drop.p != block.attn.proj_drop.p:
        raise RequestError(
            f"timm's pos_drop_rate={told.pos_drop.p:g} and proj_drop_rate={block.attn.proj_drop.p:g} differ; "
            "here they are one: build its model with equal ones"
        )
    drop_path = getattr(block.drop_path1, "drop_prob", 0.0)
    return {"dropout": float(told.pos_drop.p), "drop_path": round(float(drop_path), _DIGITS)}


def _activation(model: nn.Module) -> Activation:
    found = {name: module for name, module in model.named_modules() if name.endswith("mlp.act")}
    kinds = {_activation_kind(name, module) for name, module in found.items()}
    if len(kinds) != 1:
        raise RequestError(
            f"timm's activations differ from block to block ({', '.join(sorted(kinds))}): no counterpart"
        )
    return kinds.pop()


def _activation_kind(name: str, module: Any) -> Activation:
    if _name(module) == "QuickGELU":
        return "quick_gelu"
    if _name(module) == "GELUTanh" or (_name(module) == "GELU" and getattr(module, "approximate", "none") == "tanh"):
        return "gelu_tanh"
    if _name(module) == "GELU":
        return "gelu"
    raise RequestError(f"timm's {name} is {module}, which has no counterpart here")


def _norm_eps(model: nn.Module) -> float:
    """Epsilon of the layer norms; the group norms of a hybrid's stem have their own."""
    epsilons = {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)}
    if len(epsilons) != 1:
        values = ", ".join(f"{epsilon:g}" for epsilon in sorted(epsilons))
        raise RequestError(f"timm's norms are not all layer norms of one epsilon ({values or 'none'}): no counterpart")
    return float(epsilons.pop())


def _sides(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _name(part: Any) -> str:
    return type(part).__name__
