"""Carrying weights to another resolution or another set of classes (2010.11929, section 3.2)."""

from __future__ import annotations

from typing import TypeVar

from vitcore.errors import RequestError
from vitcore.models.build import build_with
from vitcore.models.classifier import Classifier
from vitcore.models.model import Model
from vitcore.recipe import ModelConfig, VitConfig, parse

M = TypeVar("M", bound=Model)


def adapt(
    model: M,
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    drop_path: float | None = None,
    pooling: str | None = None,
    keep_head: bool = True,
) -> M:
    """A new model with the weights of `model`, for other classes, another resolution or both.

    Position embeddings are interpolated. The head is carried over, unless the class count differs or `keep_head` is
    false, since the classes mean something else: then it starts at zero. Device and mode (training, evaluation) are
    those of `model`.

    Args:
        model: left as it is; nothing is shared with it.
        num_classes: default: the model's; 0 leaves the head away.
        image_size: pixels; default: the model's.
        drop_path: rate of stochastic depth; default: the model's.
        pooling: what the head reads; default: as in the model.
        keep_head: false starts the head at zero although the class count is the same.
    Raises:
        RequestError: an image size that the patch does not divide; a drop path or a pooling for a model without.
    """
    classes = model.num_classes if num_classes is None else num_classes
    size = model.image_size if image_size is None else image_size
    config = model.config
    for field, value in {"drop_path": drop_path, "pooling": pooling}.items():
        if value is None:
            continue
        if field not in type(config).model_fields:
            raise RequestError(f"model.{field} is for transformers; leave it out for a {config.kind}")
        config = _repooled(config, value) if field == "pooling" else config.model_copy(update={field: value})
    adapted = build_with(config, model.state_for(size), num_classes=model.num_classes, image_size=size)
    if isinstance(adapted, Classifier) and (not keep_head or classes != model.num_classes):
        adapted.reset_head(classes)
    return adapted.train(model.training)  # type: ignore[return-value]


def _repooled(config: ModelConfig, pooling: object) -> ModelConfig:
    """The same model read otherwise: its class token stays, whether the head reads it or not."""
    if not isinstance(config, VitConfig) or pooling == config.pooling:
        return config
    if "map" in (pooling, config.pooling):
        raise RequestError("attention pooling has weights of its own: model.pooling cannot be changed from or to 'map'")
    return parse(type(config), {**config.model_dump(), "pooling": pooling, "class_token": config.has_class_token})
