"""Classification by the nearest neighbours' vote: how good frozen features are, with nothing trained on them.

Legend: B questions, N photographs of the bank, D width of the features, K classes, M neighbours.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 20
TEMPERATURE = 0.07
_PRODUCTS = 1 << 26  # similarities that are in memory at a time


def neighbour_votes(
    asked_BD: Tensor,
    bank_ND: Tensor,
    labels_N: Tensor,
    classes: int,
    *,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Votes (B, K) of the most similar rows of the bank for their classes (1805.01978, section 3.4).

    A neighbour's vote is exp(cosine ÷ temperature), up to a factor that all votes share.

    Args:
        asked_BD: features that are asked about; of any length, which does not count.
        bank_ND: features whose classes are known.
        labels_N: their classes, from 0 to K − 1.
        classes: K.
        neighbours: M, how many vote; all of the bank where it is smaller.
        temperature: the smaller, the more the nearest of them count.
    """
    bank_DN = F.normalize(bank_ND.float()).T
    votes_BK = bank_DN.new_zeros(len(asked_BD), classes)
    chunk = max(1, _PRODUCTS // max(1, len(bank_ND)))
    for start in range(0, len(asked_BD), chunk):
        rows = slice(start, start + chunk)
        nearest = (F.normalize(asked_BD[rows].float()) @ bank_DN).topk(min(neighbours, len(bank_ND)), dim=1)
        # Less the largest possible cosine: it changes no decision, and no vote overflows at a low temperature.
        votes_BK[rows].scatter_add_(1, labels_N[nearest.indices], ((nearest.values - 1) / temperature).exp())
    return votes_BK
