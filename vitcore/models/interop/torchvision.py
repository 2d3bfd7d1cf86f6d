"""torchvision's ViT as ours, and ours as torchvision's.

Both compute the plain ViT; torchvision has other names for its parameters and none of the options.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.block import hidden_width
from vitcore.models.build import build_with
from vitcore.models.interop.foreign import Foreign
from vitcore.models.model import Model
from vitcore.models.vit import VisionTransformer
from vitcore.recipe import VitConfig, parse

_HALF = (0.5, 0.5, 0.5)
_EPS = 1e-6
_HEAD_WIDTH = 64
_HEADS_OF_WIDTH = {1280: 16}  # of vit_h_14, the one published model whose heads are wider
_OUTSIDE = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed.proj.weight": "conv_proj.weight",
    "patch_embed.proj.bias": "conv_proj.bias",
    "norm.weight": "encoder.ln.weight",
    "norm.bias": "encoder.ln.bias",
    "head.weight": "heads.head.weight",
    "head.bias": "heads.head.bias",
}
_IN_A_BLOCK = {
    "norm1.": "ln_1.",
    "attn.qkv.": "self_attention.in_proj_",
    "attn.proj.": "self_attention.out_proj.",
    "norm2.": "ln_2.",
    "mlp.fc1.": "mlp.0.",
    "mlp.fc2.": "mlp.3.",
}
_FORMERLY = {"mlp.linear_1.": "mlp.0.", "mlp.linear_2.": "mlp.3."}  # files of before torchvision 0.14
_HIDDEN = "encoder.layers.encoder_layer_0.mlp.0.weight"
_HIDDEN_FORMERLY = "encoder.layers.encoder_layer_0.mlp.linear_1.weight"
_BLOCK = re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.(.+)")


def from_torchvision(
    source: nn.Module | Mapping[str, Tensor],
    *,
    like: nn.Module | None = None,
    heads: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> VisionTransformer:
    """Our ViT with the weights of a torchvision ``VisionTransformer`` or its state dict.

    Args:
        source: the model, or its state dict.
        like: a torchvision model (on the meta device, if you like) that says what the state dict `source` does not:
            heads, epsilon and dropout.
        heads: attention heads; default: the model's, or those of the published model of that width, or channels of 64.
        mean: statistics the input is normalised with; default: 0.5.
        std: likewise.
    Raises:
        RequestError: the model has parts ours has not; the sentence names them.
    """
    described = source if isinstance(source, nn.Module) else like
    state = source.state_dict() if isinstance(source, nn.Module) else source
    options = {} if described is None else _options_of(described)
    if heads:
        options["heads"] = heads
    config, num_classes, image_size = _describe(state, {**options, "mean": mean or _HALF, "std": std or _HALF})
    model = build_with(
        config,
        {_ours(name): tensor for name, tensor in state.items()},
        num_classes=num_classes,
        image_size=image_size,
        source="the weights of the torchvision model, by our names,",
    )
    assert isinstance(model, VisionTransformer)
    return model


def to_torchvision(model: Model) -> Foreign:
    """The model as torchvision has it: ``VisionTransformer(**config["model_args"])`` loads the weights strictly.

    Stochastic depth, which torchvision has not, is left out; fixed sin-cos positions are learned ones of the same
    values there.

    Raises:
        RequestError: torchvision has no such model; the sentence names what it lacks.
    """
    if type(model) is not VisionTransformer:
        raise RequestError(f"torchvision has no counterpart of a {model.config.kind} here; give a plain ViT")
    _refuse_options_of_ours(model)
    config = model.config
    arguments = {
        "image_size": model.image_size,
        "patch_size": config.patch,
        "num_layers": config.depth,
        "num_heads": config.heads,
        "hidden_dim": config.width,
        "mlp_dim": hidden_width(config.width, config.mlp_ratio),
        "dropout": config.dropout,
        "num_classes": model.num_classes,
    }
    state = {_theirs(name): tensor for name, tensor in model.state_dict().items()}
    if not config.patch_bias:
        state["conv_proj.bias"] = state["conv_proj.weight"].new_zeros(config.width)
    described = {
        "architecture": "VisionTransformer",
        "model_args": arguments,
        "mean": list(config.mean),
        "std": list(config.std),
    }
    return Foreign(described, state)


def _describe(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> tuple[VitConfig, int, int]:
    """Read architecture, class count and image size off names and shapes; `options` say what they do not tell."""
    hidden = _HIDDEN if _HIDDEN in state else _HIDDEN_FORMERLY
    needed = {"conv_proj.weight": 4, "encoder.pos_embedding": 3, "heads.head.weight": 2, hidden: 2}
    faulty = [name for name, dimensions in needed.items() if not _has(state, name, dimensions)]
    if faulty:
        raise RequestError(
            f"the weights are not those of a torchvision ViT: missing, or of another shape, are {', '.join(faulty)}"
        )
    width, _, patch, _ = state["conv_proj.weight"].shape
    grid = math.isqrt(state["encoder.pos_embedding"].shape[1] - 1)
    tree = {
        "patch": patch,
        "width": width,
        "depth": len({match[1] for name in state if (match := _BLOCK.fullmatch(name))}),
        "heads": _HEADS_OF_WIDTH.get(width, max(width // _HEAD_WIDTH, 1)),
        "mlp_ratio": state[hidden].shape[0] / width,
        **options,
    }
    return parse(VitConfig, tree), state["heads.head.weight"].shape[0], grid * patch


def _has(state: Mapping[str, Tensor], name: str, dimensions: int) -> bool:
    return name in state and state[name].dim() == dimensions and state[name].numel() > 0


def _ours(name: str) -> str:
    """Our name of a parameter of theirs; a name that is none of theirs stays, for the check to name it."""
    outside = {theirs: ours for ours, theirs in _OUTSIDE.items()}
    match = _BLOCK.fullmatch(name)
    if match is None:
        return outside.get(name, name)
    inside = match[2]
    for theirs, since in _FORMERLY.items():
        inside = inside.replace(theirs, since)
    for ours, theirs in _IN_A_BLOCK.items():
        if inside.startswith(theirs):
            return f"blocks.{match[1]}.{ours}{inside.removeprefix(theirs)}"
    return name


def _theirs(name: str) -> str:
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match is None:
        return _OUTSIDE[name]
    ours = next(ours for ours in _IN_A_BLOCK if match[2].startswith(ours))
    return f"encoder.layers.encoder_layer_{match[1]}.{_IN_A_BLOCK[ours]}{match[2].removeprefix(ours)}"


def _options_of(model: nn.Module) -> dict[str, Any]:
    """What the module tells beside its weights.

    Raises:
        RequestError: no ViT of torchvision's, or an option that has no counterpart here.
    """
    told: Any = model  # attributes of torchvision's, which has no types
    if type(model).__name__ != "VisionTransformer" or not hasattr(model, "conv_proj"):
        raise RequestError(f"torchvision's {type(model).__name__} has no counterpart here; give a VisionTransformer")
    foreign = {
        "conv_stem_configs": not isinstance(told.conv_proj, nn.Conv2d),
        f"representation_size={told.representation_size}": told.representation_size is not None,
        f"attention_dropout={told.attention_dropout:g}": told.attention_dropout > 0,
    }
    for option, present in foreign.items():
        if present:
            raise RequestError(f"torchvision's {option} has no counterpart here")
    epsilons = {module.eps for name, module in model.named_modules() if name.endswith(("ln", "ln_1", "ln_2"))}
    if len(epsilons) != 1:
        raise RequestError("torchvision's norms have different epsilons, which has no counterpart here")
    heads = told.encoder.layers[0].self_attention.num_heads
    return {"heads": int(heads), "norm_eps": float(epsilons.pop()), "dropout": float(told.dropout)}


def _refuse_options_of_ours(model: VisionTransformer) -> None:
    config = model.config
    lacking = {
        f"pooling {config.pooling!r}": config.pooling != "token",
        "registers": config.registers > 0,
        "a class token without position": not config.embed_prefix,
        "layer_scale": config.layer_scale is not None,
        "qk_norm": config.qk_norm,
        "pre_norm": config.pre_norm,
        "norm_after_pool": config.norm_after_pool,
        f"activation {config.activation!r}": config.activation != "gelu",
        f"norms with epsilon {config.norm_eps:g}": config.norm_eps != _EPS,
        "a model without a head: adapt it to your classes": model.num_classes == 0,
    }
    for what, present in lacking.items():
        if present:
            raise RequestError(f"torchvision has no counterpart of {what}")
