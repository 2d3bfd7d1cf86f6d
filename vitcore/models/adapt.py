"""Carrying weights to another resolution or another set of classes (2010.11929, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vitcore.errors import RequestError
from vitcore.models.build import build_with
from vitcore.models.classifier import Classifier
from vitcore.models.vit import VisionTransformer, grid_of
from vitcore.recipe import CnnConfig


def adapt(
    model: Classifier,
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    drop_path: float | None = None,
    keep_head: bool = True,
) -> Classifier:
    """A new model with the weights of `model`, for other classes, another resolution or both.

    Position embeddings are interpolated. The head is carried over, unless the class count differs or `keep_head` is
    false, since the classes mean something else: then it starts at zero. Device and mode (training, evaluation) are
    those of `model`.

    Args:
        model: left as it is; nothing is shared with it.
        num_classes: default: the model's.
        image_size: pixels; default: the model's.
        drop_path: rate of stochastic depth; default: the model's.
        keep_head: false starts the head at zero although the class count is the same.
    Raises:
        RequestError: an image size that the patch does not divide; a drop path for a CNN.
    """
    config, classes = model.config, model.num_classes if num_classes is None else num_classes
    size = model.image_size if image_size is None else image_size
    if drop_path is not None:
        if isinstance(config, CnnConfig):
            raise RequestError(f"model.drop_path is for transformers; leave it out for {config.name}")
        config = config.model_copy(update={"drop_path": drop_path})
    state = dict(model.state_dict())
    if isinstance(model, VisionTransformer):
        grid = grid_of(size, model.config.patch)
        state["pos_embed"] = resize_position_embedding(state["pos_embed"], grid, prefix=model.num_prefix)
    if not keep_head or classes != model.num_classes:
        for name in model.head_parameters():
            state[name] = state[name].new_zeros(classes, *state[name].shape[1:])
    return build_with(config, state, num_classes=classes, image_size=size).train(model.training)


def resize_position_embedding(positions_ND: Tensor, grid: int, *, prefix: int) -> Tensor:
    """Position embeddings for a square grid of `grid` × `grid` patches, by antialiased bicubic interpolation.

    Args:
        positions_ND: (1, prefix + patches, D), of a square grid.
        grid: patches along a side of the new image.
        prefix: leading tokens that have no place in the grid; they are kept.
    """
    tokens_1TD, patches_1PD = positions_ND[:, :prefix], positions_ND[:, prefix:]
    old = round(patches_1PD.shape[1] ** 0.5)
    if old == grid:
        return positions_ND
    plane_1DYX = patches_1PD.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized_1DYX = F.interpolate(plane_1DYX, size=(grid, grid), mode="bicubic", antialias=True)
    resized_1PD = resized_1DYX.permute(0, 2, 3, 1).flatten(1, 2).to(positions_ND.dtype)
    return torch.cat([tokens_1TD, resized_1PD], dim=1)
