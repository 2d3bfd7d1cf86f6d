"""Ranks and recalls of retrieval, against a reading that asks one question at a time."""

from __future__ import annotations

import pytest
import torch

from vitcore.measures import retrieval
from vitcore.measures.retrieval import ranks, recall


def slowly(similar_NT: torch.Tensor, image_of_T: torch.Tensor) -> tuple[list[int], list[int]]:
    texts, images = [], []
    for image in range(len(similar_NT)):
        own = [text for text in range(len(image_of_T)) if image_of_T[text] == image]
        others = [text for text in range(len(image_of_T)) if image_of_T[text] != image]
        best = max((similar_NT[image, text].item() for text in own), default=None)
        texts.append(-1 if best is None else sum(similar_NT[image, text].item() >= best for text in others))
    for text, owner in enumerate(image_of_T.tolist()):
        others = [image for image in range(len(similar_NT)) if image != owner]
        images.append(sum(bool(similar_NT[image, text] >= similar_NT[owner, text]) for image in others))
    return texts, images


@pytest.mark.parametrize("chunk", [1, 40, 1 << 20])
def test_ranks_of_galleries_with_several_texts_an_image(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "CHUNK", chunk)
    torch.manual_seed(0)
    image_NE = torch.randint(-2, 3, (13, 4)).double()  # whole numbers: many ties, and none by rounding
    owners = torch.tensor([0, 0, 0, 1, 2, 2, 4, 5, 6, 7, 7, 8, 9, 9, 9, 9, 10, 11, 12, 0])
    text_TE = torch.randint(-2, 3, (len(owners), 4)).double()
    found = ranks(image_NE, text_TE, owners)
    texts, images = slowly(image_NE @ text_TE.T, owners)
    assert found.texts_N.tolist() == texts and texts[3] == -1
    assert found.images_T.tolist() == images


def test_recall() -> None:
    some = torch.tensor([0, 3, -1, 9, 10])
    assert [recall(some, k) for k in (1, 4, 10, 11)] == [0.25, 0.5, 0.75, 1.0]
    assert recall(torch.tensor([-1]), 5) == 0 == recall(torch.tensor([], dtype=torch.int64), 5)


def test_embeddings_that_are_all_the_same_find_nothing() -> None:
    same = torch.ones(20, 3)
    found = ranks(same, same.repeat(2, 1), torch.arange(20).repeat(2))
    assert recall(found.texts_N, 10) == 0 == recall(found.images_T, 10)


def test_an_images_own_texts_do_not_stand_in_each_others_way() -> None:
    image_NE, text_TE = torch.eye(2), torch.tensor([[1.0, 0.0], [0.5, 0.0], [0.9, 0.1], [0.0, 1.0]])
    found = ranks(image_NE, text_TE, torch.tensor([0, 0, 0, 1]))
    assert found.texts_N.tolist() == [0, 0]
    assert found.images_T.tolist() == [0, 0, 0, 0]


def test_empty_galleries() -> None:
    found = ranks(torch.ones(3, 2), torch.empty(0, 2), torch.empty(0, dtype=torch.int64))
    assert found.texts_N.tolist() == [-1, -1, -1] and len(found.images_T) == 0
