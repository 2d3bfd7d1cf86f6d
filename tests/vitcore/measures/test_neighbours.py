"""The vote of the nearest neighbours (1805.01978, section 3.4) against counting them one by one."""

from __future__ import annotations

import math

import pytest
import torch

from vitcore.measures import neighbours
from vitcore.measures.neighbours import neighbour_votes

K = 4


def data(asked: int = 17, bank: int = 50) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    labels_N = torch.randint(K, (bank,), generator=generator)
    return torch.randn(asked, 6, generator=generator) * 3, torch.randn(bank, 6, generator=generator), labels_N


@pytest.mark.parametrize(("most", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 1.0), (80, 0.01)])
@pytest.mark.parametrize("products", [1, 200, 1 << 20])
def test_equals_brute_force(most: int, temperature: float, products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_PRODUCTS", products)
    asked_BD, bank_ND, labels_N = data()
    ours_BK = neighbour_votes(asked_BD, bank_ND, labels_N, K, neighbours=most, temperature=temperature)
    assert ours_BK.shape == (17, K)
    for asked, votes in zip(asked_BD.double(), ours_BK, strict=True):
        likeness = [
            (float(asked @ row / asked.norm() / row.norm()), int(label))
            for row, label in zip(bank_ND.double(), labels_N, strict=True)
        ]
        expected = [0.0] * K
        for cosine, label in sorted(likeness, reverse=True)[:most]:
            expected[label] += math.exp((cosine - 1) / temperature)
        assert votes.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_the_defaults_are_those_of_the_paper_but_for_twenty_neighbours() -> None:
    asked_BD, bank_ND, labels_N = data()
    named = neighbour_votes(asked_BD, bank_ND, labels_N, K, neighbours=20, temperature=0.07)
    assert torch.equal(neighbour_votes(asked_BD, bank_ND, labels_N, K), named)


def test_nobody_asks_or_nobody_answers() -> None:
    asked_BD, bank_ND, labels_N = data()
    assert neighbour_votes(asked_BD[:0], bank_ND, labels_N, K).shape == (0, K)
    assert not neighbour_votes(asked_BD, bank_ND[:0], labels_N[:0], K).any()
