"""What retrieval reaches without learning to see: bags of words told from thumbnails by ridge regression.

Legend: N photographs, T captions, F thumbnail features, V words.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 12
RARE = 5
"""Words in fewer captions are left out."""
RIDGES = (30.0, 100.0, 300.0, 1000.0)


def features(images_NCHW: Tensor) -> Tensor:
    """A thumbnail of 12 × 12 pixels and the spread of the colours within its cells [N, F], from uint8 photographs."""
    pixels = images_NCHW.float() / 255
    small = F.adaptive_avg_pool2d(pixels, SIDE)
    spread = (F.adaptive_avg_pool2d(pixels**2, SIDE) - small**2).clamp_min(0).sqrt()
    return torch.cat([small.flatten(1), spread.flatten(1)], 1)


class Words:
    """Captions as bags of words, weighted by how rare a word is (tf-idf), of unit length."""

    def __init__(self, captions: Sequence[str]) -> None:
        counts = Counter(word for caption in captions for word in set(_split(caption)))
        known = [word for word, count in counts.items() if count >= RARE]
        self._place = {word: place for place, word in enumerate(known)}
        self._rare_V = torch.tensor([math.log(len(captions) / counts[word]) for word in known])

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """[T, V]"""
        bags_TV = torch.zeros(len(captions), len(self._place))
        for row, caption in enumerate(captions):
            for word in _split(caption):
                if word in self._place:
                    bags_TV[row, self._place[word]] = 1
        return F.normalize(bags_TV * self._rare_V, dim=1)


def told(train_NF: Tensor, bags_NV: Tensor, asked_NF: Tensor) -> Tensor:
    """Bags of words told of the photographs that are asked for [N, V], of unit length.

    The penalty is the one under which a tenth of the training photographs finds its captions best.
    """
    mean_F, deviation_F = train_NF.mean(0), train_NF.std(0) + 1e-6
    train_NF, asked_NF = ((part - mean_F) / deviation_F for part in (train_NF, asked_NF))
    held = len(train_NF) // 10

    def fit(rows: slice, ridge: float) -> Tensor:
        x_NF, centre_V = train_NF[rows], bags_NV[rows].mean(0)
        gram_FF = x_NF.T @ x_NF + ridge * torch.eye(x_NF.shape[1])
        weights_FV: Tensor = torch.linalg.solve(gram_FF, x_NF.T @ (bags_NV[rows] - centre_V))
        return weights_FV

    def found(ridge: float) -> float:
        near = F.normalize(train_NF[:held] @ fit(slice(held, None), ridge), dim=1) @ bags_NV[:held].T
        return (near >= near.diagonal()[:, None]).sum(1).float().log().mean().item()

    best = min(RIDGES, key=found)
    return F.normalize(asked_NF @ fit(slice(None), best), dim=1)


def _split(caption: str) -> list[str]:
    return re.findall(r"[a-z]+", caption.lower())
