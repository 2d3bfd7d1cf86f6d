"""What an open_clip model computes, read off the module: fields of our configurations.

A configuration is read by way of the module it describes, built without memory, so that there is one way to read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.recipe.model import Activation

SIGLIP_TOKENIZER = "timm/ViT-B-16-SigLIP"
"""open_clip's name of the sentence pieces that our tokenizer ``siglip`` has."""
_FIELDS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias"}
_LAYER_SCALE = 1e-5  # an initial value, which weights do not tell
_POOLINGS = {"tok": "token", "avg": "mean"}
_TEXT_POOLINGS = {"argmax": "end", "last": "last"}


def described(model_cfg: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """The open_clip model of a ``model_cfg``, on the meta device.

    Raises:
        RequestError: it asks for parts that have no counterpart here, or is not what the weights are of.
    """
    unknown = sorted(set(model_cfg) - _FIELDS)
    if unknown:
        raise RequestError(f"open_clip's options {', '.join(unknown)} have no counterpart here")
    vision, text = (dict(model_cfg.get(part) or {}) for part in ("vision_cfg", "text_cfg"))
    _check_untrusted(vision, text, state)
    vision |= {"timm_model_pretrained": False, "pos_embed_type": "learnable"}  # fixed positions come with the weights
    from open_clip.model import CLIP, CustomTextCLIP

    arguments = {name: model_cfg[name] for name in _FIELDS - {"custom_text"} if name in model_cfg}
    kind = CustomTextCLIP if model_cfg.get("custom_text") else CLIP
    try:
        with torch.device("meta"):
            model: nn.Module = kind(**arguments | {"vision_cfg": vision, "text_cfg": text})
    except (AssertionError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise RequestError(f"open_clip cannot build what its configuration describes: {error}") from None
    return model


def _check_untrusted(vision: Mapping[str, Any], text: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Nothing is fetched from a hub, and nothing is built that is deeper than the weights."""
    name = vision.get("timm_model_name")
    if text.get("hf_model_name") or (name and not re.fullmatch(r"\w+(\.\w+)?", str(name))):
        raise RequestError("a tower of the hub has no counterpart here; give open_clip's own, or one that timm names")
    tokenizer = text.get("hf_tokenizer_name") or SIGLIP_TOKENIZER
    if tokenizer != SIGLIP_TOKENIZER or text.get("tokenizer_mode"):
        raise RequestError(f"the tokenizer {tokenizer} has no counterpart here; known: CLIP's and {SIGLIP_TOKENIZER}")
    depths = {"vision_cfg.layers": (vision, "visual.transformer"), "text_cfg.layers": (text, "(text.)?transformer")}
    for field, (tower, prefix) in depths.items():
        pattern = re.compile(prefix.replace(".t", r"\.t") + r"\.resblocks\.(\d+)\.")
        deepest = max((int(match[match.lastindex or 0]) for key in state if (match := pattern.match(key))), default=-1)
        if not (name and tower is vision) and tower.get("layers", 12) != deepest + 1:
            raise RequestError(f"open_clip's {field} is {tower.get('layers', 12)}, but the weights have {deepest + 1}")


def text_options(model: nn.Module) -> dict[str, Any]:
    """Fields of `vitcore.recipe.TextConfig`.

    Raises:
        RequestError: a text tower that computes otherwise than ours.
    """
    custom = hasattr(model, "text")
    tower: Any = model.text if custom else model
    if custom and _name(tower) != "TextTransformer":
        raise RequestError(f"open_clip's text tower {_name(tower)} has no counterpart here")
    pooling = tower.pool_type if custom else tower.text_pool_type
    foreign = {
        "embed_cls": getattr(tower, "cls_emb", None) is not None,
        f"pool_type={pooling!r}": pooling not in _TEXT_POOLINGS,
        "proj_type='none'": tower.text_projection is None,
        "ls_init_value of the text tower": _name(tower.transformer.resblocks[0].ls_1) != "Identity",
    }
    _refuse(foreign)
    return {
        "tokenizer": "clip" if pooling == "argmax" else "siglip",
        "context": tower.positional_embedding.shape[0],
        "vocabulary": tower.token_embedding.num_embeddings,
        "causal": tower.attn_mask is not None,
        "pooling": _TEXT_POOLINGS[pooling],
        "projection_bias": isinstance(tower.text_projection, nn.Linear),
        **_transformer(tower.transformer, tower.ln_final),
    }


def image_options(visual: nn.Module) -> dict[str, Any]:
    """Fields of `vitcore.recipe.VitConfig` of open_clip's own ViT.

    Raises:
        RequestError: an image tower that computes otherwise than ours.
    """
    if _name(visual) != "VisionTransformer":
        raise RequestError(f"open_clip's image tower {_name(visual)} has no counterpart here; give a ViT")
    tower: Any = visual
    foreign = {
        "attentional_pool": tower.attn_pool is not None,
        f"pool_type={tower.pool_type!r}": tower.pool_type not in _POOLINGS,
        f"image_size={tower.image_size}": tower.image_size[0] != tower.image_size[1],
    }
    _refuse(foreign)
    pooling, scaled = _POOLINGS[tower.pool_type], _name(tower.transformer.resblocks[0].ls_1) == "LayerScale"
    return {
        "kind": "vit",
        "patch": tower.patch_size[0],
        "pooling": pooling,
        "class_token": None if pooling == "token" else True,
        "layer_scale": _LAYER_SCALE if scaled else None,
        "pre_norm": isinstance(tower.ln_pre, nn.LayerNorm),
        "norm_after_pool": bool(tower.final_ln_after_pool),
        "patch_bias": False,
        **_transformer(tower.transformer, tower.ln_post),
    }


def _transformer(transformer: Any, last_norm: Any) -> dict[str, Any]:
    """What both towers have."""
    first = transformer.resblocks[0]
    _refuse({f"block {_name(first)}": _name(first) != "ResidualAttentionBlock"})
    norms = [module for module in transformer.modules() if isinstance(module, nn.LayerNorm)]
    epsilons = {norm.eps for norm in [*norms, last_norm]}
    _refuse({f"epsilons {sorted(epsilons)} in one tower": len(epsilons) != 1})
    return {
        "width": transformer.width,
        "depth": len(transformer.resblocks),
        "heads": first.attn.num_heads,
        "mlp_ratio": first.mlp.c_fc.out_features / transformer.width,
        "activation": _activation(first.mlp.gelu),
        "norm_eps": epsilons.pop(),
    }


def _activation(module: Any) -> Activation:
    if _name(module) == "QuickGELU":
        return "quick_gelu"
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    raise RequestError(f"open_clip's activation {_name(module)} has no counterpart here")


def _refuse(foreign: Mapping[str, bool]) -> None:
    for option, present in foreign.items():
        if present:
            raise RequestError(f"open_clip's {option} has no counterpart here")


def _name(part: Any) -> str:
    return type(part).__name__
