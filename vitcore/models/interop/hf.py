"""Models of Hugging Face's transformers as ours, and ours as theirs: ViT, DeiT and CLIP.

Their names here are those of their files (``vit.encoder.layer.0.attention.attention.query.weight``), which every
version of transformers reads. Version 5 calls the same parameters otherwise while they are in memory
(``vit.layers.0.attention.q_proj.weight``); both are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.interop.foreign import Foreign
from vitcore.models.interop.hf_clip import clip_from, clip_to
from vitcore.models.interop.hf_vit import vit_from, vit_to
from vitcore.models.model import Model
from vitcore.models.vit import VisionTransformer
from vitcore.recipe import ClipConfig

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
STATISTICS = {"vit": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), "deit": _IMAGENET, "clip": _OPENAI}
"""Mean and deviation that the public weights of each ``model_type`` expect of their input."""


def from_hf(
    source: nn.Module | tuple[Mapping[str, Tensor], Mapping[str, Any]],
    *,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> Model:
    """Our model with the weights of one of transformers'.

    ``ViTModel`` and ``ViTForImageClassification`` become a ViT; ``DeiTForImageClassificationWithTeacher`` a DeiT;
    ``DeiTForImageClassification``, whose distillation token no head reads, a ViT with a register; ``DeiTModel`` a DeiT
    without heads; ``CLIPModel`` a `Clip`. Rates of dropout say how a model was trained, not what it computes, and are
    not carried over.

    Args:
        source: a model, or a state dict and the tree of its ``config.json``.
        mean: statistics the input is normalised with, which neither of them tells; default: `STATISTICS`.
        std: likewise.
    Raises:
        RequestError: another kind of model, a parameter ours has not, or an option ours does not compute.
    """
    if isinstance(source, nn.Module):
        described: Any = source.config
        state: Mapping[str, Tensor] = source.state_dict()
        config: Mapping[str, Any] = described.to_dict()
    else:
        state, config = source
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in STATISTICS:
        raise RequestError(f"transformers' model_type {kind!r} has no counterpart here; known: {', '.join(STATISTICS)}")
    mean, std = mean or STATISTICS[kind][0], std or STATISTICS[kind][1]
    if kind == "clip":
        return clip_from(state, config, mean, std)
    return vit_from(state, config, mean, std)


def to_hf(model: Model, classes: Sequence[str] = ()) -> Foreign:
    """One of transformers' models with the weights of ours, in the names of its files.

    Args:
        model: a ViT, DeiT or CLIP.
        classes: names of the classes; default: none.
    Raises:
        RequestError: transformers has no model that computes the same; the sentence names the option.
    """
    if isinstance(model.config, ClipConfig):
        return clip_to(model)
    if isinstance(model, VisionTransformer):
        return vit_to(model, classes)
    raise RequestError(f"transformers has no {model.config.kind} like ours; export it to onnx or safetensors")


def labels_of(config: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """Class names of a ``config.json``; none where it only counts them (``LABEL_0``, ``LABEL_1``, …).

    Raises:
        RequestError: the names are no map from class numbers, or not one for each class.
    """
    named = config.get("id2label")
    if not named or not num_classes:
        return ()
    try:
        ordered = [str(named[key]) for key in sorted(named, key=int)]
    except (TypeError, ValueError):
        raise RequestError("config.json's id2label is no map from class numbers to names") from None
    if all(label == f"LABEL_{number}" for number, label in enumerate(ordered)):
        return ()
    if len(ordered) != num_classes:
        raise RequestError(f"config.json's id2label names {len(ordered)} classes, but the head has {num_classes}")
    return tuple(ordered)
