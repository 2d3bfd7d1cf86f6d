"""Zero-shot classification against a plain computation, and templates from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vitcore.data.dataset.manifest import Dataset
from vitcore.errors import RequestError
from vitcore.evals.represent import backbone_of, features, image_embeddings, scale_of, text_embeddings
from vitcore.evals.zeroshot import TEMPLATES, class_embeddings, prompts, read_templates, zero_shot
from vitcore.models import Pretrained
from vitcore.models.clip import Clip
from vitcore.models.tokenizer import Tokenizer
from vitcore.recipe import VitConfig

CLASSES = ("red_fox", "owl", "toad")


def test_logits_are_those_of_a_plain_computation(clip: Pretrained, toy: Dataset) -> None:
    model = clip.model
    assert isinstance(model, Clip)
    images = image_embeddings(clip, toy, "val", batch_size=7)
    vectors = class_embeddings(text_embeddings(clip, prompts(CLASSES)), len(CLASSES))
    found = zero_shot(images, vectors, CLASSES, scale=scale_of(clip))

    tokenize = Tokenizer(model.config.text)
    weights = []
    with torch.no_grad():
        for name in ("red fox", "owl", "toad"):
            each = [model.embed_texts(tokenize([template.format(name)]))[0] for template in TEMPLATES]
            weights.append(F.normalize(torch.stack(each).mean(0), dim=0))
        expected = model.logit_scale.exp() * torch.from_numpy(images.values) @ torch.stack(weights).T
    assert np.allclose(found.logits, expected.numpy(), atol=1e-4)
    assert found.classes == CLASSES
    assert found.labels.tolist() == toy.index("val").labels.tolist()
    assert np.ptp(found.logits) > 1e-3


def test_embeddings_have_length_one_and_ranges_go_together(clip: Pretrained, toy: Dataset) -> None:
    whole = image_embeddings(clip, toy, "val")
    part = image_embeddings(clip, toy, "val", start=10, stop=20, batch_size=3)
    assert np.allclose(np.linalg.norm(whole.values, axis=1), 1, atol=1e-5)
    assert np.allclose(whole.values[10:20], part.values, atol=1e-5)
    assert part.rows.tolist() == list(range(10, 20))


def test_features_are_what_a_head_would_read(clip: Pretrained, make_pretrained, toy: Dataset) -> None:
    """A CLIP's lie before its projection; a classifier's before its head."""
    assert features(clip, toy, "val", stop=3).values.shape == (3, 32)
    model = make_pretrained(VitConfig(patch=8, width=32, depth=2, heads=2), ("a", "b"))
    found = features(model, toy, "val", stop=3)
    head = model.classifier.head
    logits = torch.from_numpy(found.values) @ head.weight.T + head.bias
    with torch.no_grad():
        images = image_pixels(toy, 3)
        expected = model.model(images)
    assert torch.allclose(logits, expected, atol=1e-4)
    assert model.model.num_classes == 2
    assert backbone_of(model).num_classes == 0


def image_pixels(dataset: Dataset, count: int) -> torch.Tensor:
    from vitcore.data.loading.loader import EvalLoader

    with EvalLoader(dataset, "val", image_size=32, resize=32, batch_size=count, stop=count, start=0) as loader:
        return (next(iter(loader)).images_SCHW.float() / 255 - 0.5) / 0.5


def test_a_classifier_knows_no_texts(make_pretrained) -> None:
    with pytest.raises(RequestError, match="give a CLIP"):
        text_embeddings(make_pretrained(VitConfig(patch=8, width=16, depth=1, heads=2)), ["a"])


def test_templates_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("an X-ray of a {}.\n\n  {} under a lamp \n")
    assert read_templates(str(path)) == ("an X-ray of a {}.", "{} under a lamp")
    assert prompts(("cell",), read_templates(str(path))) == ["an X-ray of a cell.", "cell under a lamp"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"no place", "has not one {}"), (b"{} and {}", "has not one {}"), (b"\n", "empty"), (b"\xff\xfe{}", "no text")],
)
def test_wrong_templates_are_one_sentence(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(RequestError, match=words):
        read_templates(str(tmp_path / "prompts.txt"))
    with pytest.raises(RequestError, match="there is no file"):
        read_templates(str(tmp_path / "gone.txt"))


def test_class_names_that_look_like_templates_do_no_harm() -> None:
    assert prompts(("{0.__class__}",), ("a {}.",)) == ["a {0. class }."]
