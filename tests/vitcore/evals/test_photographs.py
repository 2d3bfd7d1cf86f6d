"""Single photographs: features, texts to choose between, and refusals."""

from __future__ import annotations

import pytest
import torch

from vitcore.errors import RequestError
from vitcore.evals.photographs import features, probabilities, text_probabilities
from vitcore.evals.represent import scale_of, text_embeddings
from vitcore.models import Pretrained
from vitcore.recipe import VitConfig

VIEWS = [torch.full((3, 32, 32), value, dtype=torch.uint8) for value in (0, 120, 255)]


def test_texts_are_chosen_by_scaled_cosine(clip: Pretrained) -> None:
    texts = ["a photo of a dog.", "a photo of a cat."]
    found = text_probabilities(clip, VIEWS, texts)
    assert torch.allclose(found.sum(1), torch.ones(3))
    images = features(clip, VIEWS)
    assert torch.allclose(images.norm(dim=1), torch.ones(3), atol=1e-5)
    expected = (scale_of(clip) * images @ torch.from_numpy(text_embeddings(clip, texts)).T).softmax(1)
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_model_without_a_head_gives_features_and_no_classes(make_pretrained) -> None:
    backbone = make_pretrained(VitConfig(patch=8, width=16, depth=1, heads=2))
    assert features(backbone, VIEWS).shape == (3, 16)
    with pytest.raises(RequestError, match="has no classes"):
        probabilities(backbone, VIEWS)
    with pytest.raises(RequestError, match="knows no texts"):
        text_probabilities(backbone, VIEWS, ["a"])
