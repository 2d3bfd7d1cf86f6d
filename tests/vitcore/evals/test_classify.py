"""Prediction over a real small dataset: right samples, right columns, right pixels; and throughput."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitcore.data.dataset.manifest import Dataset
from vitcore.data.ingest.ingest import ingest
from vitcore.data.ingest_config import IngestConfig, SplitFractions
from vitcore.errors import RequestError
from vitcore.evals.classify import match_classes, predict, throughput
from vitcore.evals.outcomes import concat
from vitcore.models import ModelCard, Pretrained, build
from vitcore.recipe import VitConfig

CLASSES = ("bird", "cat", "dog")
SIZE = 16
COUNT = 23


@pytest.fixture(scope="module")
def photographs() -> dict[str, np.ndarray]:
    """Pixels by file name, so that a sample is recognised by its source."""
    rng = np.random.default_rng(0)
    return {
        f"{CLASSES[index % 3]}/{index:03d}.png": rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        for index in range(COUNT)
    }


@pytest.fixture(scope="module")
def dataset(photographs: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("evals")
    for name, pixels in photographs.items():
        path = folder / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    config = IngestConfig(splits=SplitFractions(train=0, val=0, test=1))
    return Dataset.open(ingest(str(folder / "raw"), str(folder / "set"), config))


def pretrained(classes: tuple[str, ...]) -> Pretrained:
    torch.manual_seed(0)
    config = VitConfig(patch=8, width=16, depth=1, heads=2, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    model = build(config, num_classes=len(classes), image_size=SIZE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    card = ModelCard(model=config, image_size=SIZE, num_classes=len(classes), classes=classes, resize=SIZE)
    return Pretrained(model, card, "0" * 16)


def by_hand(model: Pretrained, pixels: np.ndarray) -> np.ndarray:
    config = model.card.model
    image = (torch.from_numpy(pixels).float() / 255 - torch.tensor(config.mean)) / torch.tensor(config.std)
    with torch.inference_mode():
        return model.model(image.permute(2, 0, 1)[None])[0].numpy()


def test_every_sample_gets_the_logits_of_its_own_pixels(dataset: Dataset, photographs: dict[str, np.ndarray]) -> None:
    model = pretrained(CLASSES)
    calls: list[tuple[int, int]] = []
    found = predict(model, dataset, "test", batch_size=5, progress=lambda done, total: calls.append((done, total)))
    index = dataset.index("test")
    assert found.keys.tolist() == index.keys.tolist()
    assert found.classes == CLASSES
    assert calls[-1] == (COUNT, COUNT)
    for row, source in enumerate(index.sources):
        assert CLASSES[found.labels[row]] == source.split("/")[0]
        assert np.allclose(found.logits[row], by_hand(model, photographs[source]), atol=1e-5)


def test_classes_are_matched_by_name(dataset: Dataset) -> None:
    plain = predict(pretrained(CLASSES), dataset, "test")
    other = pretrained(CLASSES)
    other.model.head.weight.data = other.model.head.weight.data[[2, 0, 1]]
    other.model.head.bias.data = other.model.head.bias.data[[2, 0, 1]]
    renamed = replace(other, card=other.card.model_copy(update={"classes": ("dog", "bird", "cat")}))
    found = predict(renamed, dataset, "test")
    assert found.classes == CLASSES
    assert np.array_equal(found.labels, plain.labels)
    assert np.allclose(found.logits, plain.logits, atol=1e-6)


def test_a_class_only_the_model_knows_keeps_its_column(dataset: Dataset) -> None:
    found = predict(pretrained(("wolf", "dog", "cat", "bird")), dataset, "test")
    assert found.classes == (*CLASSES, "wolf")
    assert found.logits.shape == (COUNT, 4)
    classes, columns = match_classes(("wolf", "dog", "cat", "bird"), CLASSES)
    assert (classes, columns.tolist()) == ((*CLASSES, "wolf"), [3, 2, 1, 0])


def test_ranges_and_batch_sizes_give_the_same_answers(dataset: Dataset) -> None:
    model = pretrained(CLASSES)
    whole = predict(model, dataset, "test", batch_size=COUNT)
    parts = [
        predict(model, dataset, "test", start=start, stop=min(start + 9, COUNT), batch_size=4)
        for start in range(0, COUNT, 9)
    ]
    joined = concat(parts)
    assert joined.keys.tolist() == whole.keys.tolist()
    assert np.allclose(joined.logits, whole.logits, atol=1e-5)


def test_the_model_keeps_its_mode_and_its_precision(dataset: Dataset) -> None:
    model = pretrained(CLASSES)
    model.model.train()
    coarse = predict(model, dataset, "test", autocast=torch.autocast("cpu", dtype=torch.bfloat16))
    assert model.model.training
    assert coarse.logits.dtype == np.float32
    fine = predict(model, dataset, "test")
    assert not np.array_equal(coarse.logits, fine.logits)
    assert np.allclose(coarse.logits, fine.logits, atol=0.2)


def test_an_unreadable_photograph_is_left_out_and_named(dataset: Dataset, tmp_path: Path) -> None:
    index = dataset.index("test")
    tar = Path(dataset.shard_url(dataset.shards("test")[0]))
    content = tar.read_bytes()
    torn = bytearray(content)
    torn[index.offsets[4] : index.offsets[4] + index.sizes[4]] = bytes(int(index.sizes[4]))
    try:
        tar.write_bytes(torn)
        found = predict(pretrained(CLASSES), Dataset.open(dataset.ref), "test", batch_size=8)
    finally:
        tar.write_bytes(content)
    assert found.skipped == (index.keys[4],)
    assert found.keys.tolist() == [key for row, key in enumerate(index.keys) if row != 4]


def test_what_cannot_be_evaluated_is_refused_in_words(dataset: Dataset) -> None:
    with pytest.raises(RequestError, match="does not know the class 'dog'"):
        predict(pretrained(("bird", "cat")), dataset, "test")
    with pytest.raises(RequestError, match="no names"):
        match_classes((), CLASSES)
    with pytest.raises(RequestError, match="has no split 'holdout'"):
        predict(pretrained(CLASSES), dataset, "holdout")
    with pytest.raises(RequestError, match="not a range"):
        predict(pretrained(CLASSES), dataset, "test", start=5, stop=99)


def test_throughput_counts_images_not_batches() -> None:
    model = pretrained(CLASSES)
    passes: list[int] = []
    model.model.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    found = throughput(model, batch_size=4, seconds=0.2)
    assert sum(passes[2:]) / 0.2 == pytest.approx(found, rel=0.3)
    assert throughput(model, batch_size=4, seconds=0) > 0
