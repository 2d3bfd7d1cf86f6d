"""``torchvision:NAME[@FILE]``: torchvision's ViT and most of its CNNs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitcore.errors import RequestError
from vitcore.models.build import build_with
from vitcore.models.cnn import check_name
from vitcore.models.interop.torchvision import from_torchvision
from vitcore.models.model import Model
from vitcore.models.pretrained import Pretrained, read_safetensors
from vitcore.models.references.card import with_card
from vitcore.recipe import CnnConfig

_MATRIX = 2
_VIT = "vit_"


def load(name: str, file: str) -> Pretrained:
    """A torchvision model by name, with the weights of a file where one is given.

    Raises:
        RequestError: torchvision has no such model, or its weights cannot be had or do not fit.
    """
    from torchvision import models

    if not (name.startswith(_VIT) and name in models.list_models(module=models)):
        check_name(name)
    weights = models.get_model_weights(name).DEFAULT
    presets = weights.transforms()
    state = read_safetensors(file) if file else _from_torch_hub(name, weights.url)
    mean, std = tuple(presets.mean), tuple(presets.std)
    if name.startswith(_VIT):
        with torch.device("meta"):  # only its description is wanted
            like = models.get_model(name, weights=None)
        model: Model = from_torchvision(state, like=like, mean=mean, std=std)
    else:
        model = _cnn(CnnConfig(name=name, mean=mean, std=std), state, presets.crop_size[0])
    return with_card(model, () if file else tuple(weights.meta["categories"]), presets.resize_size[0])


def _cnn(config: CnnConfig, state: dict[str, Tensor], image_size: int) -> Model:
    """The head is the last matrix of the file, whatever it is called: it says how many classes there are."""
    matrices = [tensor for tensor in state.values() if tensor.dim() == _MATRIX]
    if not matrices:
        raise RequestError(f"the weights are not those of {config.name}: they hold no linear head")
    return build_with(
        config,
        {f"net.{key}": tensor for key, tensor in state.items()},
        num_classes=len(matrices[-1]),
        image_size=image_size,
        source=f"the weights for {config.name}",
    )


def _from_torch_hub(name: str, url: str) -> dict[str, Tensor]:
    """Weights from torch's hub cache, else from their address; only tensors are unpickled."""
    folder, file = Path(torch.hub.get_dir()) / "checkpoints", url.rsplit("/", 1)[-1]
    try:
        state: dict[str, Any] = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except OSError:
        raise RequestError(
            f"{url} cannot be reached for torchvision:{name}; put the file at {folder / file}, or give its tensors: "
            f"torchvision:{name}@/path/to/model.safetensors"
        ) from None
    if name.startswith("densenet"):  # their files still have the names of before torch 0.4
        return {re.sub(r"\.(norm|conv)\.(\d)\.", r".\1\2.", key): tensor for key, tensor in state.items()}
    return dict(state)
