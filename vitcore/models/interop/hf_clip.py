"""transformers' ``CLIPModel`` (2103.00020) as our `Clip`, and back.

Both towers are pre-norm transformers with queries, keys and values apart; the image tower has a norm before its first
block and no bias in its patch projection, and neither projection into the shared space has one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitcore.errors import RequestError
from vitcore.models.build import build_with
from vitcore.models.interop import hf_common as common
from vitcore.models.interop.foreign import Foreign
from vitcore.models.model import Model
from vitcore.recipe import ClipConfig, DeitConfig, HybridConfig, VitConfig, parse

_LEGACY_END = 2  # public weights from before transformers 4.31 say so and mean: the token with the highest id
_BLOCK = {
    "norm1": "layer_norm1",
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_PLAIN = {
    "logit_scale": "logit_scale",
    "image_projection.weight": "visual_projection.weight",
    "text.projection.weight": "text_projection.weight",
    "image.patch_embed.proj.weight": "vision_model.embeddings.patch_embedding.weight",
    "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text.pos_embed": "text_model.embeddings.position_embedding.weight",
    "image.norm_pre.weight": "vision_model.pre_layrnorm.weight",
    "image.norm_pre.bias": "vision_model.pre_layrnorm.bias",
    "image.norm.weight": "vision_model.post_layernorm.weight",
    "image.norm.bias": "vision_model.post_layernorm.bias",
    "text.norm.weight": "text_model.final_layer_norm.weight",
    "text.norm.bias": "text_model.final_layer_norm.bias",
}
_CLASS = "vision_model.embeddings.class_embedding"  # (D), ours (1, 1, D)
_POSITIONS = "vision_model.embeddings.position_embedding.weight"  # (N, D), ours (1, N, D)
_TOWERS = {"image": "vision_model", "text": "text_model"}
# Numbers 0, 1, 2, … that older files hold.
_COUNTING = ("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")

# Options of ours that transformers' CLIP has not, with the only value that it computes.
_IMAGE: dict[str, Any] = {
    "pooling": "token",
    "registers": 0,
    "embed_prefix": True,
    "layer_scale": None,
    "qk_norm": False,
    "pre_norm": True,
    "norm_after_pool": False,
    "patch_bias": False,
}
_TEXT: dict[str, Any] = {"tokenizer": "clip", "causal": True, "pooling": "end", "projection_bias": False}
_BOTH: dict[str, Any] = {"image_projection": True, "bias": None}


def clip_from(
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Model:
    """Our `Clip`; see `vitcore.models.interop.hf.from_hf`."""
    vision, text = _tower(config, "vision_config"), _tower(config, "text_config")
    common.check_colours(vision)
    theirs = {name: tensor for name, tensor in state.items() if name not in _COUNTING}
    depths = {tower: _depth(theirs, prefix) for tower, prefix in _TOWERS.items()}
    ours = {name: common.take(theirs, their_name) for name, their_name in _names(depths).items()}
    ours["image.cls_token"] = common.take(theirs, _CLASS).reshape(1, 1, -1)
    ours["image.pos_embed"] = common.take(theirs, _POSITIONS).unsqueeze(0)
    for packed, names in _packed(depths).items():
        ours[packed] = common.pack(theirs, names)
    common.nothing_left(theirs)
    _check_end(text, vocabulary=len(ours["text.token_embedding.weight"]))
    tree = {
        "width": len(ours["image_projection.weight"]),
        "image": _image_tree(vision, ours, depths["image"]) | {"mean": mean, "std": std},
        "text": _text_tree(text, ours, depths["text"]),
    }
    return build_with(
        parse(ClipConfig, tree),
        ours,
        num_classes=0,
        image_size=common.number(vision, "image_size", 224),
        source="the weights of the transformers model",
    )


def clip_to(model: Model) -> Foreign:
    """Theirs from our `Clip`; see `vitcore.models.interop.hf.to_hf`."""
    config = model.config
    assert isinstance(config, ClipConfig)
    image = config.image
    if not isinstance(image, VitConfig) or isinstance(image, DeitConfig | HybridConfig):
        raise RequestError(f"transformers' CLIP has no {image.kind} image tower; export it to onnx or safetensors")
    for part, fixed in ((config, _BOTH), (image, _IMAGE), (config.text, _TEXT)):
        for field, value in fixed.items():
            if getattr(part, field) != value:
                raise RequestError(
                    f"transformers' CLIP does not compute {field} {getattr(part, field)!r}; "
                    "export it to open_clip, onnx or safetensors"
                )
    ours = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    depths = {"image": image.depth, "text": config.text.depth}
    theirs = {their_name: ours[name].clone() for name, their_name in _names(depths).items()}
    theirs[_CLASS] = ours["image.cls_token"].reshape(-1).clone()
    theirs[_POSITIONS] = ours["image.pos_embed"].squeeze(0).clone()
    for packed, names in _packed(depths).items():
        theirs |= dict(zip(names, common.unpack(ours[packed]), strict=True))
    return Foreign(_config(config, image, model.image_size, theirs), theirs)


def _config(config: ClipConfig, image: VitConfig, image_size: int, theirs: Mapping[str, Tensor]) -> dict[str, Any]:
    text = config.text

    def tower(part: VitConfig | Any, prefix: str) -> dict[str, Any]:
        return {
            "hidden_size": part.width,
            "num_hidden_layers": part.depth,
            "num_attention_heads": part.heads,
            "intermediate_size": len(theirs[f"{prefix}.encoder.layers.0.mlp.fc1.weight"]),
            "hidden_act": common.activation_out(part.activation),
            "layer_norm_eps": part.norm_eps,
            "attention_dropout": 0.0,
            "projection_dim": config.width,
        }

    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.width,
        "logit_scale_init_value": math.log(config.scale),
        "vision_config": {
            **tower(image, "vision_model"),
            "model_type": "clip_vision_model",
            "image_size": image_size,
            "patch_size": image.patch,
            "num_channels": 3,
        },
        "text_config": {
            **tower(text, "text_model"),
            "model_type": "clip_text_model",
            "vocab_size": text.vocabulary,
            "max_position_embeddings": text.context,
            "bos_token_id": text.vocabulary - 2,  # the vocabulary's last tokens: the start and the end of a text
            "eos_token_id": text.vocabulary - 1,
            "pad_token_id": text.vocabulary - 1,
        },
    }


def _image_tree(vision: Mapping[str, Any], ours: Mapping[str, Tensor], depth: int) -> dict[str, Any]:
    width, _, patch, _ = ours["image.patch_embed.proj.weight"].shape
    return {
        "kind": "vit",
        "patch": patch,
        "width": width,
        "depth": depth,
        "heads": common.number(vision, "num_attention_heads", 12),
        "mlp_ratio": len(ours["image.blocks.0.mlp.fc1.weight"]) / width,
        "activation": common.activation_in(vision, "quick_gelu"),
        "norm_eps": common.epsilon(vision, 1e-5),
        "pre_norm": True,
        "patch_bias": False,
    }


def _text_tree(text: Mapping[str, Any], ours: Mapping[str, Tensor], depth: int) -> dict[str, Any]:
    vocabulary, width = ours["text.token_embedding.weight"].shape
    return {
        "context": len(ours["text.pos_embed"]),
        "vocabulary": vocabulary,
        "width": width,
        "depth": depth,
        "heads": common.number(text, "num_attention_heads", 8),
        "mlp_ratio": len(ours["text.blocks.0.mlp.fc1.weight"]) / width,
        "activation": common.activation_in(text, "quick_gelu"),
        "norm_eps": common.epsilon(text, 1e-5),
    }


def _check_end(text: Mapping[str, Any], vocabulary: int) -> None:
    """Their text is read at its end, ours at the token with the highest id: the two must be one."""
    end = text.get("eos_token_id", vocabulary - 1)
    if end not in (_LEGACY_END, vocabulary - 1):
        raise RequestError(
            f"transformers' eos_token_id is {end!r}; only that of CLIP's own vocabulary, its last, is supported"
        )


def _tower(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Options of a tower; old files say some of them twice, and the second time counts."""
    said = [config.get(key) or {} for key in (name, f"{name}_dict")]
    if not all(isinstance(options, Mapping) for options in said):
        raise RequestError(f"config.json's {name} is not an object")
    return {**said[0], **said[1]}


def _depth(theirs: Mapping[str, Tensor], prefix: str) -> int:
    pattern = re.compile(rf"{prefix}\.encoder\.layers\.(\d+)\.")
    depth = len({match[1] for name in theirs if (match := pattern.match(name))})
    if not depth:
        raise RequestError(f"the weights are not those of a CLIP of transformers: {prefix} has no layers")
    return depth


def _names(depths: Mapping[str, int]) -> dict[str, str]:
    """Our parameter → theirs, of everything that has the same shape."""
    names = dict(_PLAIN)
    for tower, prefix in _TOWERS.items():
        for block in range(depths[tower]):
            names |= {
                f"{tower}.blocks.{block}.{our}.{leaf}": f"{prefix}.encoder.layers.{block}.{their}.{leaf}"
                for our, their in _BLOCK.items()
                for leaf in ("weight", "bias")
            }
    return names


def _packed(depths: Mapping[str, int]) -> dict[str, list[str]]:
    """Our packed projection → the three of theirs."""
    return {
        f"{tower}.blocks.{block}.attn.qkv.{leaf}": [
            f"{prefix}.encoder.layers.{block}.self_attn.{part}_proj.{leaf}" for part in "qkv"
        ]
        for tower, prefix in _TOWERS.items()
        for block in range(depths[tower])
        for leaf in ("weight", "bias")
    }
