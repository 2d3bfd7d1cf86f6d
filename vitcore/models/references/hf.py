"""``hf:ORG/NAME[@FOLDER]``: ViT, DeiT and CLIP as Hugging Face's transformers keeps them: a repository or a folder with
``config.json``, ``model.safetensors`` and ``preprocessor_config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitcore import storage
from vitcore.errors import RequestError
from vitcore.models.interop.hf import from_hf, labels_of
from vitcore.models.pretrained import Pretrained, read_safetensors
from vitcore.models.references.card import with_card
from vitcore.models.references.hub import fetch, read_json

_PREPARATION = ("preprocessor_config.json", "processor_config.json")
_COLOURS = 3


def load(name: str, folder: str) -> Pretrained:
    """A model of the hub by name, or of a folder.

    Raises:
        RequestError: it cannot be had, is of another kind, or does not say how its images are prepared.
    """
    place = folder or (storage.absolute(name) if is_folder(name) else "")
    config = read_json(_file(name, place, "config.json"))
    preparation = _preparation(name, place)
    mean, std = _statistics(preparation, "image_mean"), _statistics(preparation, "image_std")
    state = read_safetensors(_file(name, place, "model.safetensors"))
    model = from_hf((state, config), mean=mean, std=std)
    return with_card(model, labels_of(config, model.num_classes), _resize(preparation, model.image_size))


def is_folder(name: str) -> bool:
    """Whether the name is a path or URL and not that of a repository."""
    return name.startswith(("/", ".", "~")) or "://" in name


def _file(name: str, place: str, file: str) -> str:
    if place:
        return storage.join(place, file)
    return fetch(name, file, f"give a folder with its files: hf:{name}@/path/to/folder")


def _preparation(name: str, place: str) -> Mapping[str, Any]:
    """How images are prepared. Newer folders of CLIP say it in another file, one level deeper.

    Without it nobody knows what the weights expect, and a guess would cost accuracy without a word.
    """
    refusal: RequestError | None = None
    for file in _PREPARATION:
        try:
            tree = read_json(_file(name, place, file))
        except RequestError as error:
            refusal = refusal or error
        else:
            inner = tree.get("image_processor", tree)
            return inner if isinstance(inner, Mapping) else tree
    raise RequestError(f"{refusal}; it says how the images are normalised")


def _statistics(preparation: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    if preparation.get("do_normalize", True) is False:
        return (0.0, 0.0, 0.0) if name == "image_mean" else (1.0, 1.0, 1.0)
    values = preparation.get(name)
    if not isinstance(values, list) or len(values) != _COLOURS or not all(isinstance(v, float | int) for v in values):
        raise RequestError(f"{_PREPARATION[0]} has no {name} of three numbers; it says how the images are normalised")
    return float(values[0]), float(values[1]), float(values[2])


def _resize(preparation: Mapping[str, Any], image_size: int) -> int:
    """Short side before the centre crop; where they squash the image to its size, the short side becomes that size."""
    size = preparation.get("size", image_size)
    if isinstance(size, Mapping):
        size = size.get("shortest_edge", size.get("height", image_size))
    return size if isinstance(size, int) and size >= image_size else image_size
