"""How a model is measured: which of the protocols fits the model and the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import field_validator

from vitcore.data.dataset.manifest import Dataset
from vitcore.errors import RequestError
from vitcore.identity import digest
from vitcore.models.pretrained import ModelCard
from vitcore.recipe import Config

Name = Literal["classifier", "zero-shot", "knn", "linear", "retrieval"]
"""``classifier``: the model's own head. ``zero-shot``: an image and text model, by prompts made of the class names.
``knn``: the vote of the nearest training photographs. ``linear``: a linear classifier learned on frozen features.
``retrieval``: photographs and captions find each other."""
NAMES: tuple[Name, ...] = get_args(Name)

GALLERY = 5_000
"""Most photographs that a retrieval searches, unless asked for more: that of the usual tables (COCO's 5,000)."""

_NEEDS: Mapping[str, str] = {
    "classifier": "a model with a head",
    "zero-shot": "an image and text model",
    "retrieval": "an image and text model",
}


class Protocol(Config):
    """A protocol and what it depends on beside the model and the split."""

    name: Name = "classifier"
    prompts: tuple[str, ...] = ()
    """Zero-shot: templates with one {} for the class each; none: the general ones."""
    bank: str = "train"
    """k-NN and linear: split whose labelled photographs are known."""
    gallery: int | None = None
    """Retrieval: the first so many photographs of the split; default: all, at most 5,000."""

    @field_validator("prompts")
    @classmethod
    def _one_place_each(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for template in value:
            if template.count("{}") != 1:
                raise ValueError(f"the template {template!r} must hold one {{}}, where the class name goes")
        return value

    @field_validator("gallery")
    @classmethod
    def _some(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError("must be at least 1")
        return value

    def identity_parts(self) -> dict[str, Any]:
        """What a report depends on; nothing for a classifier, as before there were protocols."""
        if self.name == "classifier":
            return {}
        own: dict[str, Any] = {"zero-shot": {"prompts": digest(self.prompts)}, "retrieval": {"gallery": self.gallery}}
        return {"protocol": self.name, **own.get(self.name, {"bank": self.bank})}


def choose(asked: str, card: ModelCard, dataset: Dataset) -> Name:
    """The protocol that was asked for, or with ``auto`` the one that fits.

    An image and text model is measured zero-shot where the data has labels, by retrieval where it has captions only; a
    model with a head by its head; one without by its nearest neighbours.

    Raises:
        RequestError: there is no such protocol, or it does not fit the model or the data.
    """
    if asked != "auto" and asked not in NAMES:
        raise RequestError(f"there is no protocol {asked!r}; known: auto, {', '.join(NAMES)}")
    fitting = fitting_protocols(card)
    if asked == "auto":
        labelled = "label" in dataset.manifest.fields
        chosen = next((name for name in fitting if labelled != (name == "retrieval")), fitting[0])
    else:
        chosen = next((name for name in NAMES if name == asked), fitting[0])
    if chosen not in fitting:
        what = "an image and text model" if card.model.kind == "clip" else "one with a head"
        what = what if card.model.kind == "clip" or card.num_classes else "one without a head"
        raise RequestError(
            f"the protocol {chosen} needs {_NEEDS[chosen]}, and this is {what}: take {' or '.join(fitting)}"
        )
    dataset.require("captions" if chosen == "retrieval" else "label")
    return chosen


def usual_protocols(card: ModelCard) -> Sequence[Name]:
    """Those whose scores stand for a model on its card."""
    if card.model.kind == "clip":
        return "zero-shot", "retrieval"
    return ("classifier",) if card.num_classes else ("knn",)


def fitting_protocols(card: ModelCard) -> Sequence[Name]:
    """Those that a model can be measured by, its usual ones first."""
    if card.model.kind == "clip":
        return "zero-shot", "retrieval", "knn", "linear"
    return ("classifier", "knn", "linear") if card.num_classes else ("knn", "linear")
