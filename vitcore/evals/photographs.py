"""Single photographs, outside any dataset: what a classifier says of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitcore.data.loading.augment import default_resize, evaluation_view
from vitcore.data.reading.decode import Photograph
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


@torch.inference_mode()
def probabilities(model: Pretrained, views: Sequence[Tensor]) -> Tensor:
    """Class probabilities (N, K) of views that `view` gave."""
    normalize = Normalize(model.model.config, torch.device("cpu"))
    parts = []
    for start in range(0, len(views), _BATCH):
        images_BCHW = torch.stack(list(views[start : start + _BATCH])).float() / 255
        parts.append(model.model(normalize(images_BCHW)).float().softmax(dim=1))
    return torch.cat(parts)
