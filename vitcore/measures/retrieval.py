"""Retrieval between two galleries: how often what belongs together is found among the nearest.

Legend: N images, T texts, B rows of a chunk, E dimension of the shared space.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 1 << 24
"""Similarities that are in memory at a time: 64 MB of them, whatever the galleries."""


class Ranks(NamedTuple):
    """How many stand before the right answer, for each question; 0: it is the nearest."""

    texts_N: Tensor
    """int64: before the nearest of an image's own texts; -1 for an image without any"""
    images_T: Tensor
    """int64: before the image of a text"""


def ranks(image_NE: Tensor, text_TE: Tensor, image_of_T: Tensor) -> Ranks:
    """Rank of the right answers, both ways. What is as near as the right answer stands before it, so that embeddings
    that are all the same find nothing; an image's other texts never do.

    Args:
        image_NE: embeddings whose products are compared.
        text_TE: of the texts, any number an image.
        image_of_T: int64: row of the image that each text belongs to.
    """
    best_N = torch.full((len(image_NE),), -torch.inf, dtype=image_NE.dtype, device=image_NE.device)
    texts_N = torch.full((len(image_NE),), -1, device=image_NE.device)
    images_T = torch.empty_like(image_of_T)
    for rows, similar_BN in _chunks(text_TE, image_NE):
        owners_B = image_of_T[rows]
        own_B1 = similar_BN.gather(1, owners_B[:, None])
        images_T[rows] = (similar_BN >= own_B1).sum(1) - 1
        best_N.scatter_reduce_(0, owners_B, own_B1[:, 0], "amax")
    for rows, similar_BN in _chunks(text_TE, image_NE):
        before_BN = similar_BN >= best_N
        before_BN.scatter_(1, image_of_T[rows, None], False)
        texts_N += before_BN.sum(0)
    texts_N += 1
    return Ranks(texts_N.masked_fill_(best_N == -torch.inf, -1), images_T)


def recall(ranks: Tensor, k: int) -> float:
    """Share of the questions whose right answer is among the `k` nearest; those of rank -1 do not count."""
    asked = ranks >= 0
    return (asked & (ranks < k)).sum().item() / max(int(asked.sum()), 1)


def _chunks(one_BE: Tensor, other_NE: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Similarities of some rows of one gallery with all of the other, bit by bit the same at every call."""
    step = max(1, CHUNK // max(len(other_NE), 1))
    for start in range(0, len(one_BE), step):
        rows = slice(start, min(start + step, len(one_BE)))
        yield rows, one_BE[rows] @ other_NE.T
