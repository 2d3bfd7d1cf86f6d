"""timm's models as ours, and ours as timm's.

timm's names are ours (see `vitcore.models.vit`), so that ``model.state_dict()`` is timm's state dict as it stands;
what has to be established is that both models compute the same thing.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.block import hidden_width
from vitcore.models.build import build_with
from vitcore.models.classifier import Classifier
from vitcore.models.hybrid import reduction_of
from vitcore.models.interop.foreign import Foreign
from vitcore.models.interop.timm_common import shape_in
from vitcore.models.interop.timm_mixer import from_timm_mixer, to_timm_mixer
from vitcore.models.interop.timm_options import options_of
from vitcore.models.interop.timm_pvt import from_timm_pvt, to_timm_pvt
from vitcore.models.mixer import Mixer
from vitcore.models.model import Model
from vitcore.models.pvt import Pvt
from vitcore.models.vit import VisionTransformer
from vitcore.recipe import DeitConfig, HybridConfig, VitConfig, parse

_MIXER, _MIXERS_OWN = "MlpMixer", "blocks.0.mlp_tokens.fc1.weight"
_PVT, _PVTS_OWN = "PyramidVisionTransformerV2", "stages.0.blocks.0.attn.kv.weight"
_HEAD_WIDTH = 64
_HALF = (0.5, 0.5, 0.5)
_LAYER_SCALE = 1e-5  # timm's own initial factor, for weights that do not tell theirs
_CROP = 0.875
_STEM_BLOCK = re.compile(r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.")
_POOLINGS = {"token": "token", "mean": "avg", "map": "map"}
_VITS = {1e-6: "vit_base_patch16_224", 1e-5: "vit_base_patch16_clip_224"}
_DEIT = "deit_base_distilled_patch16_224"
_STEMS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}


def from_timm(
    source: nn.Module | Mapping[str, Tensor],
    *,
    like: nn.Module | None = None,
    heads: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> Classifier:
    """Our model with the weights of a timm model or its state dict: a ViT, a `DeiT`, a `Hybrid`, a `Mixer` or a `Pvt`.

    A state dict of a ViT alone does not tell everything. Without `like`, heads have 64 channels each, the activation is
    the exact GELU, the norms' epsilon is 1e-6, and the head reads the class token where there is one (the mean where
    the final norm comes after the pooling).

    Args:
        source: a timm model, or its state dict.
        like: a timm model (on the meta device, if you like) that says what the state dict `source` does not.
        heads: attention heads of a ViT; default: the model's.
        mean: statistics the input is normalised with; default: those of the model's ``pretrained_cfg``, else 0.5.
        std: likewise.
    Raises:
        RequestError: the model has parts ours has not (the sentence names them), or computes otherwise.
    """
    described = source if isinstance(source, nn.Module) else like
    state = source.state_dict() if isinstance(source, nn.Module) else source
    if type(described).__name__ == _MIXER or _MIXERS_OWN in state:
        return from_timm_mixer(source, like=like, mean=mean, std=std)
    if type(described).__name__ == _PVT or _PVTS_OWN in state:
        return from_timm_pvt(source, like=like, mean=mean, std=std)
    told: Mapping[str, Any] = getattr(described, "pretrained_cfg", None) or {}
    options = {} if described is None else options_of(described)
    if heads:
        options["heads"] = heads
    statistics = {"mean": mean or told.get("mean") or _HALF, "std": std or told.get("std") or _HALF}
    config, num_classes, image_size = _describe(state, {**options, **statistics})
    model = build_with(
        config, state, num_classes=num_classes, image_size=image_size, source="the weights of the timm model"
    )
    assert isinstance(model, Classifier)
    return model


def check_computation(model: nn.Module) -> None:
    """Refuse a timm model that computes otherwise than ours can, in a way its parameters' names do not show.

    Raises:
        RequestError: another architecture, or an option that has no counterpart here; the sentence names it.
    """
    if type(model).__name__ == _MIXER:
        from_timm_mixer(model)
    elif type(model).__name__ == _PVT:
        from_timm_pvt(model)
    else:
        options_of(model)


def to_timm(model: Model) -> Foreign:
    """The model as timm has it: the ``config.json`` of its hub folders, and the weights.

    ``timm.create_model(config["architecture"], num_classes=…, **config["model_args"])`` loads the weights strictly.
    Fixed sin-cos positions are learned ones of the same values there.

    Raises:
        RequestError: timm has no such model; the sentence names what it lacks.
    """
    if isinstance(model, Mixer):
        return to_timm_mixer(model)
    if isinstance(model, Pvt):
        return to_timm_pvt(model)
    if not isinstance(model, VisionTransformer):
        raise RequestError(
            f"timm has no counterpart of a {model.config.kind} here; give a ViT, DeiT, hybrid, Mixer or PVT v2"
        )
    config, state = model.config, model.state_dict()
    _refuse_options_of_ours(config)
    if not config.patch_bias and not config.pre_norm:  # timm has none only where a norm follows
        state["patch_embed.proj.bias"] = state["patch_embed.proj.weight"].new_zeros(config.width)
    arguments = _arguments(model)
    described = {
        "architecture": _architecture(config),
        "num_classes": model.num_classes,
        "num_features": config.width,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": _statistics(model),
    }
    return Foreign(described, state)


def _describe(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> tuple[VitConfig, int, int]:
    """Read architecture, class count and image size off names and shapes; `options` prevail over assumptions."""
    width, _, patch, _ = shape_in(state, "patch_embed.proj.weight", 4)
    _, positions, _ = shape_in(state, "pos_embed", 3)
    hidden, _ = shape_in(state, "blocks.0.mlp.fc1.weight", 2)
    registers = shape_in(state, "reg_token", 3)[1] if "reg_token" in state else 0
    prefix = ("cls_token" in state) + ("dist_token" in state) + registers
    after_pool, has_class_token = "fc_norm.weight" in state, "cls_token" in state
    if "dist_token" in state and (registers or after_pool):
        raise RequestError("timm's DeiT reads neither registers nor a norm after the pooling; leave them out")
    kind, stem = _kind(state)
    tree: dict[str, Any] = {
        "patch": patch,
        "width": width,
        "depth": len({match[1] for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}),
        "heads": _heads(state, width),
        "mlp_ratio": hidden / width,
        "pooling": "token" if has_class_token and not after_pool else "mean",
        "registers": registers,
        "embed_prefix": not prefix or _square(positions - prefix),
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        "pre_norm": "norm_pre.weight" in state,
        "norm_after_pool": after_pool,
        "patch_bias": "patch_embed.proj.bias" in state,
        **({"layer_scale": _LAYER_SCALE} if "blocks.0.ls1.gamma" in state else {}),
        **({"stem": stem} if kind is HybridConfig else {}),
        **options,
    }
    if "attn_pool.latent" in state:
        tree["pooling"] = "map"
    if has_class_token != (tree["pooling"] == "token"):
        tree["class_token"] = has_class_token
    patches = positions - (prefix if tree["embed_prefix"] else 0)
    if not _square(patches):
        raise RequestError(
            f"the timm model has {patches} patches, which is no square; only square images are supported"
        )
    num_classes = shape_in(state, "head.weight", 2)[0] if "head.weight" in state else 0
    config = parse(kind, tree)
    return config, num_classes, math.isqrt(patches) * patch * (reduction_of(stem) if kind is HybridConfig else 1)


def _kind(state: Mapping[str, Tensor]) -> tuple[type[VitConfig], tuple[int, ...]]:
    """The family, and of a hybrid the blocks in each stage of its stem."""
    if "dist_token" in state:
        return DeitConfig, ()
    if not any(name.startswith("patch_embed.backbone.") for name in state):
        return VitConfig, ()
    blocks = {match.group(1, 2) for name in state if (match := _STEM_BLOCK.match(name))}
    depths = Counter(stage for stage, _ in blocks)
    return HybridConfig, tuple(depths[stage] for stage in sorted(depths, key=int))


def _heads(state: Mapping[str, Tensor], width: int) -> int:
    """Where queries are normalised, their norm says how wide a head is."""
    norm = "blocks.0.attn.q_norm.weight"
    return max(width // (shape_in(state, norm, 1)[0] if norm in state else _HEAD_WIDTH), 1)


def _square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def _refuse_options_of_ours(config: VitConfig) -> None:
    deit, stem = isinstance(config, DeitConfig), config.stem if isinstance(config, HybridConfig) else None
    lacking = {
        "a patch bias together with pre_norm: set patch_bias to false": config.pre_norm and config.patch_bias,
        "norm_after_pool in a DeiT": deit and config.norm_after_pool,
        "registers in a DeiT": deit and config.registers > 0,
        "a DeiT without embed_prefix": deit and not config.embed_prefix,
        f"a hybrid with the stem {stem}; it has {', '.join(map(str, _STEMS))}": stem is not None and stem not in _STEMS,
        f"norms with epsilon {config.norm_eps:g} in this architecture": config.norm_eps not in _epsilons(config),
    }
    for what, present in lacking.items():
        if present:
            raise RequestError(f"timm has no counterpart of {what}")


def _epsilons(config: VitConfig) -> set[float]:
    """No argument in words changes timm's epsilon: it comes with the architecture."""
    return set(_VITS) if config.kind == "vit" else {1e-6}


def _architecture(config: VitConfig) -> str:
    if isinstance(config, HybridConfig):
        return _STEMS[config.stem]
    return _DEIT if isinstance(config, DeitConfig) else _VITS[config.norm_eps]


def _arguments(model: VisionTransformer) -> dict[str, Any]:
    config = model.config
    hidden = hidden_width(config.width, config.mlp_ratio)
    exact = int(config.width * config.mlp_ratio) == hidden  # timm's rounding
    return {
        "img_size": model.image_size,
        "patch_size": config.patch,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio if exact else (hidden + 0.5) / config.width,
        "global_pool": _POOLINGS[config.pooling],
        "class_token": config.has_class_token,
        "reg_tokens": config.registers,
        "no_embed_class": not config.embed_prefix,
        "qk_norm": config.qk_norm,
        "pre_norm": config.pre_norm,
        "fc_norm": config.norm_after_pool,
        "act_layer": config.activation,
        "pos_drop_rate": config.dropout,
        "proj_drop_rate": config.dropout,
        "drop_path_rate": config.drop_path,
        **({} if config.layer_scale is None else {"init_values": config.layer_scale or _LAYER_SCALE}),
    }


def _statistics(model: VisionTransformer) -> dict[str, Any]:
    """What timm prepares images by: as we do in evaluation."""
    config, first = model.config, "patch_embed.proj"
    if isinstance(config, HybridConfig):
        first = "patch_embed.backbone.stem.conv" if config.stem else "patch_embed.backbone.conv"
    return {
        "input_size": [3, model.image_size, model.image_size],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": _CROP,
        "crop_mode": "center",
        "mean": list(config.mean),
        "std": list(config.std),
        "num_classes": model.num_classes,
        "pool_size": None,
        "custom_load": False,
        "first_conv": first,
        "classifier": ["head", "head_dist"] if isinstance(config, DeitConfig) else "head",
    }
