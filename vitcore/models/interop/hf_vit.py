"""transformers' ViT and DeiT as ours, and back.

Both are the pre-norm transformer of 2010.11929 with a class token and a final norm before the pooling; theirs keeps
queries, keys and values apart and has a norm epsilon of 1e-12 where nothing else is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vitcore.errors import RequestError
from vitcore.models.build import build_with
from vitcore.models.deit import DeiT
from vitcore.models.interop import hf_common as common
from vitcore.models.interop.foreign import Foreign
from vitcore.models.vit import VisionTransformer
from vitcore.recipe import DeitConfig, VitConfig, parse

_NORM_EPS = 1e-12
# How version 5 calls in memory what stands in files under another name.
_IN_MEMORY = (
    (r"(^|\.)layers\.(\d+)\.", r"\1encoder.layer.\2."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
# What reads no logits and gives none: the pooler of the bare models, the token that hides patches in pre-training.
_UNREAD = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.mask_token")

_PATCHES = "embeddings.patch_embeddings.projection"
_OUTSIDE = {"patch_embed.proj": _PATCHES, "norm": "layernorm"}
_IN_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_TOKENS = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
_DISTILLATION = "embeddings.distillation_token"
_HEADS = {"head": "classifier"}
_DEIT_HEADS = {"head": "cls_classifier", "head_dist": "distillation_classifier"}

# Options of ours that transformers' ViT has not, with the only value that it computes.
_FIXED: dict[str, Any] = {
    "pooling": "token",
    "embed_prefix": True,
    "layer_scale": None,
    "qk_norm": False,
    "pre_norm": False,
    "norm_after_pool": False,
    "patch_bias": True,
}


def vit_from(
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> VisionTransformer:
    """Our ViT or DeiT; see `vitcore.models.interop.hf.from_hf`."""
    if config.get("qkv_bias", True) is not True:
        raise RequestError("transformers' qkv_bias is false; only projections with a bias are supported")
    common.check_colours(config)
    theirs = {name: tensor for name, tensor in _as_in_files(state).items() if name not in _UNREAD}
    kind, heads = _kind(theirs, is_deit=config["model_type"] == "deit")
    depth = len({match[1] for name in theirs if (match := re.match(r"encoder\.layer\.(\d+)\.", name))})
    ours: dict[str, Tensor] = {}
    names = _names(depth, heads)
    if config["model_type"] == "deit":
        names["dist_token" if kind is DeitConfig else "reg_token"] = _DISTILLATION
    for name, their_name in names.items():
        ours[name] = common.take(theirs, their_name)
    for block in range(depth):
        for leaf in ("weight", "bias"):
            ours[f"blocks.{block}.attn.qkv.{leaf}"] = common.pack(theirs, _apart(block, leaf))
    common.nothing_left(theirs)
    tree = _described(ours, config) | {"depth": depth, "mean": mean, "std": std}
    if kind is VitConfig:
        tree["registers"] = int("reg_token" in ours)
    model = build_with(
        parse(kind, tree),
        ours,
        num_classes=len(ours["head.weight"]) if heads else 0,
        image_size=common.number(config, "image_size", 224),
        source="the weights of the transformers model",
    )
    assert isinstance(model, VisionTransformer)
    return model


def vit_to(model: VisionTransformer, classes: Sequence[str]) -> Foreign:
    """Theirs from our ViT or DeiT; see `vitcore.models.interop.hf.to_hf`."""
    is_deit = isinstance(model, DeiT)
    distilled = is_deit or model.config.registers == 1
    _check_options(model.config, registers=1 if distilled and not is_deit else 0)
    heads = (_DEIT_HEADS if is_deit else _HEADS) if model.num_classes else {}
    names = _names(model.config.depth, heads)
    if distilled:
        names["dist_token" if is_deit else "reg_token"] = _DISTILLATION
    base = "deit" if distilled else "vit"
    if heads:
        kind = {"vit": "ViTForImageClassification", "deit": "DeiTForImageClassification"}[base]
        kind += "WithTeacher" if is_deit else ""
    else:
        kind = {"vit": "ViTModel", "deit": "DeiTModel"}[base]
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    theirs = {their_name: state[name].clone() for name, their_name in names.items()}
    for block in range(model.config.depth):
        for leaf in ("weight", "bias"):
            parts = common.unpack(state[f"blocks.{block}.attn.qkv.{leaf}"])
            theirs |= dict(zip(_apart(block, leaf), parts, strict=True))
    if heads:
        theirs = {_with_base(name, base, heads): tensor for name, tensor in theirs.items()}
    return Foreign(_config(model, base, kind, classes), theirs)


def _config(model: VisionTransformer, base: str, kind: str, classes: Sequence[str]) -> dict[str, Any]:
    labels = list(classes) or [f"LABEL_{number}" for number in range(model.num_classes)]
    named = {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    return {
        "architectures": [kind],
        "model_type": base,
        "hidden_size": model.config.width,
        "num_hidden_layers": model.config.depth,
        "num_attention_heads": model.config.heads,
        "intermediate_size": len(model.state_dict()["blocks.0.mlp.fc1.weight"]),
        "hidden_act": common.activation_out(model.config.activation),
        "layer_norm_eps": model.config.norm_eps,
        "image_size": model.image_size,
        "patch_size": model.config.patch,
        "num_channels": 3,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        **(named if labels else {}),
    }


def _described(ours: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our configuration: sizes off the shapes, the rest off theirs."""
    width, _, patch, _ = ours["patch_embed.proj.weight"].shape
    return {
        "patch": patch,
        "width": width,
        "heads": common.number(config, "num_attention_heads", 12),
        "mlp_ratio": len(ours["blocks.0.mlp.fc1.weight"]) / width,
        "activation": common.activation_in(config, "gelu"),
        "norm_eps": common.epsilon(config, _NORM_EPS),
    }


def _as_in_files(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names of files, without the prefix of the bare model."""
    renamed = {}
    for name, tensor in state.items():
        plain = re.sub(r"^(vit|deit)\.", "", name)
        for pattern, replacement in _IN_MEMORY:
            plain = re.sub(pattern, replacement, plain)
        renamed[plain] = tensor
    return renamed


def _kind(theirs: Mapping[str, Tensor], *, is_deit: bool) -> tuple[type[VitConfig], Mapping[str, str]]:
    """Our configuration, and our heads with their names."""
    if "encoder.layer.0.intermediate.dense.weight" not in theirs or f"{_PATCHES}.weight" not in theirs:
        raise RequestError("the weights are not those of a ViT or DeiT of transformers")
    has_head = "classifier.weight" in theirs
    if is_deit and "cls_classifier.weight" in theirs:
        return DeitConfig, _DEIT_HEADS
    return (DeitConfig if is_deit and not has_head else VitConfig), (_HEADS if has_head else {})


def _names(depth: int, heads: Mapping[str, str]) -> dict[str, str]:
    """Our parameter → theirs, of everything that is not packed."""
    modules = {**_OUTSIDE, **heads}
    for block in range(depth):
        modules |= {f"blocks.{block}.{our}": f"encoder.layer.{block}.{their}" for our, their in _IN_BLOCK.items()}
    leaves = {f"{our}.{leaf}": f"{their}.{leaf}" for our, their in modules.items() for leaf in ("weight", "bias")}
    return {**_TOKENS, **leaves}


def _apart(block: int, leaf: str) -> list[str]:
    return [f"encoder.layer.{block}.attention.attention.{part}.{leaf}" for part in ("query", "key", "value")]


def _with_base(name: str, base: str, heads: Mapping[str, str]) -> str:
    return name if name.rpartition(".")[0] in heads.values() else f"{base}.{name}"


def _check_options(config: VitConfig, *, registers: int) -> None:
    for field, value in {**_FIXED, "registers": registers, "class_token": True}.items():
        found = config.has_class_token if field == "class_token" else getattr(config, field)
        if found != value:
            raise RequestError(
                f"transformers' ViT does not compute {field} {found!r}; export it to timm, onnx or safetensors"
            )
