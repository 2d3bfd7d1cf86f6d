"""The file format of a model: a folder with ``model.safetensors`` and ``config.json``. Nothing in it can run code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from pydantic import field_validator, model_validator
from safetensors import SafetensorError
from torch import Tensor

from vitcore import storage
from vitcore.errors import RequestError
from vitcore.models.build import build_with
from vitcore.models.classifier import Classifier
from vitcore.models.model import Model
from vitcore.recipe import AskedConfig, Config, ModelConfig, Recipe, parse

WEIGHTS = "model.safetensors"
CARD = "config.json"
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar")


class ModelCard(Config):
    """What a model is, beside its weights."""

    format: Literal[1] = 1
    """Version of this layout."""
    model: ModelConfig
    """The architecture."""
    image_size: int
    """Height and width of an input, in pixels."""
    num_classes: int
    """Length of a row of logits; 0 for a model without a head."""
    classes: tuple[str, ...] = ()
    """Name of each class; empty where they are not known."""
    recipe: Recipe | None = None
    """What it was trained by."""
    dataset: str | None = None
    """Digest of the dataset version it was trained on."""
    resize: int | None = None
    """Short side before the centre crop, in pixels; default: image size ÷ 0.875."""

    @field_validator("image_size")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value < 1:
            raise ValueError("must be at least 1")
        return value

    @field_validator("num_classes")
    @classmethod
    def _not_negative(cls, value: int) -> int:
        if value < 0:
            raise ValueError("must be 0 or more")
        return value

    @model_validator(mode="after")
    def _named(self) -> ModelCard:
        if self.classes and len(self.classes) != self.num_classes:
            raise ValueError(f"{len(self.classes)} class names for {self.num_classes} classes")
        return self


class _StoredCard(ModelCard):
    weights: str
    """Digest of the weights this card was written with: tells a torn or corrupted folder."""


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A model with weights (in evaluation mode), its card and the digest of its weights."""

    model: Model
    card: ModelCard
    digest: str

    @property
    def classifier(self) -> Classifier:
        """The model as one that has class logits, or features to put a head on.

        Raises:
            RequestError: it is an image and text model.
        """
        if not isinstance(self.model, Classifier):
            raise RequestError(f"the model is a {self.card.model.kind}, not a classifier or backbone")
        return self.model


def save_pretrained(folder: Path, model: Model, card: ModelCard) -> str:
    """Write a model's folder, the card last; returns the digest of the weights.

    Raises:
        ValueError: the card describes another model.
        RequestError: the model is one that is only asked, which no folder could bring back.
    """
    described = (card.model, card.num_classes, card.image_size)
    if described != (model.config, model.num_classes, model.image_size):
        raise ValueError("the card's architecture, class count or image size is not the model's")
    return write_pretrained(str(folder), model.state_dict(), card)


def write_pretrained(url: str, state: Mapping[str, Tensor], card: ModelCard) -> str:
    """Write the weights of the model that a card describes to a folder at any storage URL, the card last.

    Raises:
        RequestError: the model is one that is only asked, which no folder could bring back.
    """
    if isinstance(card.model, AskedConfig):
        raise RequestError(f"{card.model.name} is only asked and cannot be saved; keep the file or name it came from")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    weights = weights_digest(state)
    stored = _StoredCard(**{name: getattr(card, name) for name in ModelCard.model_fields}, weights=weights)
    storage.write(storage.join(url, WEIGHTS), safetensors.torch.save(state, metadata={"format": "pt"}))
    storage.write(storage.join(url, CARD), (stored.model_dump_json(indent=2) + "\n").encode())
    return weights


def load_pretrained(source: Path | str) -> Pretrained:
    """Read a model's folder, from a path or any storage URL.

    Raises:
        RequestError: there is no model there, it is a pickled checkpoint, it is damaged, or its weights are not those
            its card describes.
    """
    url = storage.absolute(str(source))
    refuse_pickle(url)
    card = _read_card(url)
    state = read_safetensors(storage.join(url, WEIGHTS))
    weights = weights_digest(state)
    if weights != card.weights:
        raise RequestError(f"{url} is damaged: its {WEIGHTS} is not the one its {CARD} was written with; copy it again")
    plain = ModelCard(**{name: getattr(card, name) for name in ModelCard.model_fields})
    model = build_with(
        plain.model, state, num_classes=plain.num_classes, image_size=plain.image_size, source=f"the weights in {url}"
    )
    return Pretrained(model.eval(), plain, weights)


def read_safetensors(url: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        RequestError: there is no such file, it is a pickle, or it is damaged.
    """
    refuse_pickle(url)
    try:
        return safetensors.torch.load(storage.read(url))
    except (FileNotFoundError, IsADirectoryError):
        raise RequestError(f"there is no file {url}; give a .safetensors file") from None
    except SafetensorError as error:
        raise RequestError(f"{url} is not a whole safetensors file ({error}); copy it again") from None


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes of the tensors, in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def refuse_pickle(path: str) -> None:
    """Stop before a file that could run code when it is opened.

    Raises:
        RequestError: the name is that of a pickled checkpoint.
    """
    if path.lower().endswith(PICKLES):
        raise RequestError(
            f"{path} is a pickled checkpoint, which could run code when loaded, and is not read: convert its tensors "
            "to safetensors where it comes from and give that file or folder"
        )


def _read_card(url: str) -> _StoredCard:
    try:
        text = storage.read(storage.join(url, CARD))
    except (FileNotFoundError, NotADirectoryError):
        for name in storage.names(url):
            if WEIGHTS not in storage.names(url):
                refuse_pickle(storage.join(url, name))
        raise RequestError(f"{url} is no model: give a folder that holds {CARD} and {WEIGHTS}") from None
    try:
        tree = json.loads(text)
    except ValueError:
        raise RequestError(f"{storage.join(url, CARD)} is not JSON; copy it again") from None
    return parse(_StoredCard, tree)
