"""open_clip's CLIP and SigLIP as our `Clip`, and back, with nothing lost.

Its ``CLIP`` with its own ViT (OpenAI's and LAION's weights), and its ``CustomTextCLIP`` around an image tower of timm
(SigLIP's, which has attention pooling and no projection).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.block import hidden_width
from vitcore.models.build import build, build_with
from vitcore.models.classifier import Classifier
from vitcore.models.clip import Clip
from vitcore.models.interop import open_clip_names as names
from vitcore.models.interop.foreign import Foreign
from vitcore.models.interop.open_clip_options import SIGLIP_TOKENIZER, described, image_options, text_options
from vitcore.models.interop.timm import from_timm
from vitcore.models.interop.timm_options import options_of
from vitcore.models.vit import VisionTransformer
from vitcore.recipe import ClipConfig, DeitConfig, HybridConfig, TextConfig, VitConfig, parse

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_SIGLIP = {(768, 12, 12): "base", (1024, 24, 16): "large", (1152, 27, 16): "so400m"}  # width, depth, heads
_TORCH_EPS = 1e-5
_MLP_RATIO = 4.0
_COMPUTED = ("heads", "pooling", "embed_prefix", "activation", "norm_eps")  # what shapes do not tell


def from_open_clip(
    source: nn.Module | tuple[Mapping[str, Tensor], Mapping[str, Any]],
    *,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> Clip:
    """Our model with the weights of one of open_clip's.

    Initial values of scale and bias are those the weights have now.

    Args:
        source: a model, or a state dict and the tree of its ``open_clip_config.json``.
        mean: statistics the input is normalised with; default: those of the configuration, else OpenAI's.
        std: likewise.
    Raises:
        RequestError: the model has parts ours has not (the sentence names them), or computes otherwise.
    """
    theirs, state, told = _read(source)
    statistics = {"mean": mean or told.get("mean") or OPENAI_MEAN, "std": std or told.get("std") or OPENAI_STD}
    visual: Any = theirs.visual
    trunk = _trunk(visual, state, statistics) if type(visual).__name__ == "TimmModel" else None
    image_size = trunk.image_size if trunk else visual.image_size[0]
    tree = {
        "width": _width(state),
        "image": trunk.config.model_dump() if trunk else image_options(visual) | statistics,
        "text": text_options(theirs),
        "image_projection": "visual.proj" in state or "visual.head.proj.weight" in state,
        "scale": state["logit_scale"].exp().item(),
        "bias": None if theirs.logit_bias is None else state.get("logit_bias", torch.zeros(())).item(),
    }
    config = parse(ClipConfig, tree)
    with torch.device("meta"):
        ours = build(config, num_classes=0, image_size=image_size).state_dict()
    naming = {"trunk": trunk is not None, "custom": hasattr(theirs, "text"), "biased": config.text.projection_bias}
    known_as = {name: names.their_name(name, **naming) for name in ours}
    names.check_names(state, known_as.values())
    whole = build_with(
        config,
        {name: names.to_ours(their_name, state[their_name]) for name, their_name in known_as.items()},
        num_classes=0,
        image_size=image_size,
        source="the weights of the open_clip model",
    )
    assert isinstance(whole, Clip)
    return whole


def _read(
    source: nn.Module | tuple[Mapping[str, Tensor], Mapping[str, Any]],
) -> tuple[Any, Mapping[str, Tensor], Mapping[str, Any]]:
    """The model (on the meta device where its weights are apart), its state dict, and how its input is prepared."""
    if isinstance(source, nn.Module):
        told: Any = getattr(getattr(source, "visual", None), "preprocess_cfg", None)
        model, state = source, dict(source.state_dict())
    else:
        state, config = dict(source[0]), source[1]
        model, told = described(config.get("model_cfg", config), state), config.get("preprocess_cfg")
    if not hasattr(model, "visual") or "logit_scale" not in state:
        raise RequestError(f"open_clip's {type(model).__name__} has no counterpart here; give a CLIP or CustomTextCLIP")
    return model, state, told if isinstance(told, Mapping) else {}


def _trunk(visual: Any, state: Mapping[str, Tensor], statistics: Mapping[str, Any]) -> Classifier:
    """timm's image tower as ours."""
    inner = {name.removeprefix("visual.trunk."): state[name] for name in state if name.startswith("visual.trunk.")}
    tower = from_timm(inner, like=visual.trunk, **statistics)
    if tower.num_classes:
        raise RequestError("open_clip's timm_proj='' has no counterpart here; project with 'linear', or 'none'")
    return tower


def _width(state: Mapping[str, Tensor]) -> int:
    """Dimension of the shared space: what texts are projected into."""
    for name in ("text_projection", "text.text_projection"):
        if name in state:
            return state[name].shape[1]
        if f"{name}.weight" in state:
            return state[f"{name}.weight"].shape[0]
    raise RequestError("the weights are not those of an open_clip model: missing text_projection")


def to_open_clip(model: Clip, *, timm_name: str | None = None) -> Foreign:
    """The model as open_clip has it: its ``open_clip_config.json``, and the weights.

    An image tower with a class token and without a patch bias, as CLIP's, becomes open_clip's own; others become
    timm's, by name.

    Args:
        model: the model.
        timm_name: name of timm's model whose architecture, at this image size, the image tower has; default: that of
            SigLIP's towers.
    Raises:
        RequestError: open_clip has no such model; the sentence names what it lacks.
    """
    config, image = model.config, model.config.image
    native = timm_name is None and _is_native(config)
    vision = _own_tower(image, model.image_size) if native else _timm_tower(model, timm_name)
    activations = {config.text.activation} | ({image.activation} if native and isinstance(image, VitConfig) else set())
    if "quick_gelu" in activations and len(activations) > 1:
        raise RequestError("open_clip has quick_gelu in both towers or in none; give both the same activation")
    described_as: dict[str, Any] = {
        "embed_dim": config.width,
        "vision_cfg": vision,
        "text_cfg": _text(config.text),
        **({"quick_gelu": True} if "quick_gelu" in activations else {}),
        **({} if native else {"custom_text": True}),
        **({} if model.logit_bias is None else {"init_logit_bias": model.logit_bias.item()}),
    }
    preprocess = {
        "mean": list(image.mean),
        "std": list(image.std),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    state = {}
    for name, tensor in model.state_dict().items():
        theirs = names.their_name(name, trunk=not native, custom=not native, biased=config.text.projection_bias)
        state[theirs] = names.to_theirs(theirs, tensor)
    return Foreign({"model_cfg": described_as, "preprocess_cfg": preprocess}, state)


def _is_native(config: ClipConfig) -> bool:
    """Whether open_clip's own ViT computes what the image tower does."""
    image = config.image
    if not isinstance(image, VitConfig) or isinstance(image, DeitConfig | HybridConfig):
        return False
    foreign = image.registers or image.qk_norm or image.patch_bias or not image.embed_prefix
    return config.image_projection and image.has_class_token and image.pooling != "map" and not foreign


def _own_tower(image: Any, image_size: int) -> dict[str, Any]:
    tower = {"image_size": image_size, "patch_size": image.patch, "head_width": image.width // image.heads}
    options = {
        "ls_init_value": image.layer_scale,
        "no_ln_pre": not image.pre_norm or None,
        "final_ln_after_pool": image.norm_after_pool or None,
        "pool_type": "avg" if image.pooling == "mean" else None,
    }
    return tower | _tower(image) | {name: value for name, value in options.items() if value is not None}


def _timm_tower(model: Clip, name: str | None) -> dict[str, Any]:
    """timm's model of this name, after a look whether it has this architecture."""
    from open_clip.timm_model import TimmModel

    image = model.config.image
    name = name or _siglip_name(image, model.image_size)
    poolings = {"token": "token", "mean": "avg", "map": "map"}
    tower = {
        "image_size": model.image_size,
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": poolings[image.pooling] if isinstance(image, VitConfig) else "avg",
        "timm_proj": "linear" if model.config.image_projection else "none",
    }
    try:
        with torch.device("meta"):
            visual = TimmModel(name, model.config.width, model.image_size, tower["timm_pool"], tower["timm_proj"])
    except RuntimeError:
        raise RequestError(f"timm has no model {name!r}; `timm.list_models()` lists them") from None
    _check_same(visual.trunk, model.image, name)
    return tower


def _check_same(trunk: nn.Module, tower: Classifier, name: str) -> None:
    """Refuse timm's model if it is not the architecture of our image tower."""
    ours, theirs = ({key: tensor.shape for key, tensor in module.state_dict().items()} for module in (tower, trunk))
    computes = options_of(trunk) if isinstance(tower, VisionTransformer) else {}
    differing = [field for field in _COMPUTED if field in computes and computes[field] != getattr(tower.config, field)]
    if ours != theirs or differing:
        what = f" ({', '.join(differing)})" if differing else ""
        raise RequestError(f"timm's {name} has another architecture than this image tower{what}; give the name of its")


def _siglip_name(image: Any, image_size: int) -> str:
    """timm's name of one of SigLIP's image towers."""
    size = None
    if isinstance(image, VitConfig) and image.pooling == "map":
        size = _SIGLIP.get((image.width, image.depth, image.heads))
    if size is None:
        raise RequestError(
            "open_clip names image towers other than its own ViT as timm does, and this one is none of SigLIP's; "
            "give timm's name of it"
        )
    return f"vit_{size}_patch{image.patch}_siglip_{image_size}"


def _text(text: TextConfig) -> dict[str, Any]:
    options = {
        "no_causal_mask": not text.causal or None,
        "pool_type": "last" if text.pooling == "last" else None,
        "proj_bias": text.projection_bias or None,
        "hf_tokenizer_name": SIGLIP_TOKENIZER if text.tokenizer == "siglip" else None,
        "tokenizer_kwargs": {"clean": "canonicalize"} if text.tokenizer == "siglip" else None,
    }
    tower = {"context_length": text.context, "vocab_size": text.vocabulary, "heads": text.heads}
    return tower | _tower(text) | {name: value for name, value in options.items() if value is not None}


def _tower(tower: Any) -> dict[str, Any]:
    """What both towers have; defaults of open_clip's are left out."""
    hidden = hidden_width(tower.width, tower.mlp_ratio)
    exact = int(tower.width * tower.mlp_ratio) == hidden  # open_clip rounds down
    options = {
        "mlp_ratio": None
        if hidden == _MLP_RATIO * tower.width
        else tower.mlp_ratio
        if exact
        else (hidden + 0.5) / tower.width,
        "norm_kwargs": None if tower.norm_eps == _TORCH_EPS else {"eps": tower.norm_eps},
        "act_kwargs": {"approximate": "tanh"} if tower.activation == "gelu_tanh" else None,
    }
    return {"layers": tower.depth, "width": tower.width} | {
        name: value for name, value in options.items() if value is not None
    }
