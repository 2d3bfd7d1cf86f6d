"""``open_clip:ARCH[/TAG][@FILE]``: CLIP and SigLIP with open_clip's weights.

The architecture is open_clip's own, by name (``ViT-B-32``); the tag names its weights (``laion2b_s34b_b79k``), and says
which activation and statistics they were trained with.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitcore.errors import RequestError
from vitcore.models.interop.open_clip import from_open_clip
from vitcore.models.pretrained import Pretrained, read_safetensors
from vitcore.models.references.card import with_card
from vitcore.models.references.hub import fetch_tensors

_WEIGHTS = "open_clip_model.safetensors"


def load(name: str, file: str) -> Pretrained:
    """A CLIP by its architecture and the tag of its weights, or with the weights of a file.

    Raises:
        RequestError: open_clip has no such architecture or tag, or the weights cannot be had or do not fit.
    """
    import open_clip

    architecture, _, tag = name.partition("/")
    described = open_clip.get_model_config(architecture)
    if described is None:
        raise RequestError(f"open_clip has no architecture {architecture!r}; `open_clip.list_models()` lists them")
    told: Mapping[str, Any] = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
    if not told and (tag or not file):
        raise RequestError(_tags(architecture, open_clip.list_pretrained_tags_by_model(architecture)))
    config = copy.deepcopy(described)
    if told:
        config["quick_gelu"] = bool(told.get("quick_gelu", False))
    state = read_safetensors(file) if file else _from_hub(name, told)
    model = from_open_clip((state, config), mean=told.get("mean"), std=told.get("std"))
    return with_card(model, resize=model.image_size)


def _from_hub(name: str, told: Mapping[str, Any]) -> dict[str, Tensor]:
    otherwise = f"give the file: open_clip:{name}@/path/to/{_WEIGHTS}"
    repository, _, file = str(told.get("hf_hub") or "").rpartition("/")
    if not repository:
        raise RequestError(f"open_clip publishes {name} as a pickle alone, which is not read; {otherwise}")
    return fetch_tensors(repository, _safe(file), otherwise)


def _safe(file: str) -> str:
    """The safetensors file that lies beside a pickle."""
    if not file:
        return _WEIGHTS
    return file if file.endswith(".safetensors") else f"{file.rpartition('.')[0]}.safetensors"


def _tags(architecture: str, tags: list[str]) -> str:
    if not tags:
        return (
            f"open_clip publishes no weights for {architecture}; "
            f"give a file: open_clip:{architecture}@/path/to/{_WEIGHTS}"
        )
    return f"name the weights of {architecture}: open_clip:{architecture}/TAG with one of {', '.join(tags)}"
