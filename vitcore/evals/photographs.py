"""Single photographs, outside any dataset: what a model says of them.

Legend: N photographs, K classes, D length of a row of features, E dimension of the shared space of a CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitcore.data.loading.augment import default_resize, evaluation_view
from vitcore.data.reading.decode import Photograph
from vitcore.errors import RequestError
from vitcore.evals.represent import clip_of, scale_of, text_embeddings
from vitcore.models.pretrained import ModelCard, Pretrained
from vitcore.objectives.objective import Normalize

_BATCH = 32


def view(data: bytes, card: ModelCard) -> Tensor:
    """An encoded photograph as evaluation sees it: uint8 (3, H, W).

    Raises:
        BadSampleError: no photograph, or a broken one.
    """
    size = card.image_size
    view_CHW = torch.empty(3, size, size, dtype=torch.uint8)
    evaluation_view(Photograph(data), view_CHW, default_resize(size) if card.resize is None else card.resize)
    return view_CHW


def probabilities(model: Pretrained, views: Sequence[Tensor]) -> Tensor:
    """Class probabilities (N, K) of views that `view` gave.

    Raises:
        RequestError: the model has no classes.
    """
    if not model.classifier.num_classes:
        raise RequestError("the model has no classes: it turns photographs into features; fine-tune it first")
    return _said(model, views).softmax(dim=1)


def features(model: Pretrained, views: Sequence[Tensor]) -> Tensor:
    """Features (N, D) of views by a model without a head; by a CLIP their embeddings (N, E), of length 1."""
    return _said(model, views)


def text_probabilities(model: Pretrained, views: Sequence[Tensor], texts: Sequence[str]) -> Tensor:
    """How likely each of K texts belongs to each photograph (N, K), given that one does (2103.00020, section 3.1.2).

    Raises:
        RequestError: the model knows no texts.
    """
    clip_of(model)
    cosines_NK = _said(model, views) @ torch.from_numpy(text_embeddings(model, texts)).T
    return (scale_of(model) * cosines_NK).softmax(dim=1)


@torch.inference_mode()
def _said(model: Pretrained, views: Sequence[Tensor]) -> Tensor:
    """What the model's forward pass gives for the views, on the CPU, in float32."""
    normalize = Normalize(model.model.config, torch.device("cpu"))
    parts = [torch.empty(0)] if not views else []
    for start in range(0, len(views), _BATCH):
        images_BCHW = torch.stack(list(views[start : start + _BATCH])).float() / 255
        parts.append(model.model(normalize(images_BCHW)).float())
    return torch.cat(parts)
