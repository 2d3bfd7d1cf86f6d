"""Datasets of ours in other people's readers: every sample is seen, images decode, labels and captions are right."""

from __future__ import annotations

import io
import json
import logging
import re
import tarfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
import webdataset
from PIL import Image
from webdataset.tariterators import tar_file_expander

from vitcore.data.dataset.manifest import Dataset
from vitcore.data.ingest.ingest import ingest
from vitcore.data.ingest_config import IngestConfig, SplitFractions

CLASSES = ("cat", "dog", "owl")
CONFIG = IngestConfig(shard_mb=0.03, splits=SplitFractions(train=0.7, val=0.3, test=0))


def save(path: Path, seed: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(coarse).resize((40, 32), Image.Resampling.BICUBIC).save(path, quality=95)
    return path.name


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """50 photographs of 3 uneven classes."""
    root = tmp_path_factory.mktemp("labelled")
    for label, size in enumerate((25, 15, 10)):
        for number in range(size):
            save(
                root / "raw" / CLASSES[label] / f"{number}.{'png' if number % 5 == 0 else 'jpg'}", 100 * label + number
            )
    dataset = Dataset.open(ingest(str(root / "raw"), str(root / "dataset"), CONFIG))
    assert len(dataset.shards("train")) > 1
    return dataset


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """40 photographs with one to three captions each."""
    root = tmp_path_factory.mktemp("captioned")
    rows = [{"image": save(root / "raw" / f"{number}.jpg", number), "captions": words(number)} for number in range(40)]
    (root / "raw" / "photographs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = str(root / "raw" / "photographs.jsonl")
    dataset = Dataset.open(ingest(table, str(root / "dataset"), CONFIG))
    assert len(dataset.shards("train")) > 1
    return dataset


def words(number: int) -> list[str]:
    return [f"words {number} of {turn}, “quoted”" for turn in range(1 + number % 3)]


def pattern(dataset: Dataset, split: str) -> str:
    """The split's shards below the dataset's URL in brace notation, as far as one ingest wrote them: one batch."""
    names = [shard.name for shard in dataset.shards(split)]
    (batch,) = {match[1] for name in names if (match := re.fullmatch(r"(.+)-[0-9]{5}\.tar", name))}
    assert names == [f"{batch}-{number:05d}.tar" for number in range(len(names))]
    return f"{batch}-{{00000..{len(names) - 1:05d}}}.tar"


def rows(dataset: Dataset, split: str) -> list[dict[str, Any]]:
    index = dataset.index(split)
    return [
        {"key": str(index.keys[row]), "label": index.label(row), "source": str(index.sources[row])}
        for row in range(len(index))
    ]


def test_webdataset_reads_labels(labelled: Dataset) -> None:
    for split in ("train", "val"):
        shards = f"{labelled.url}/{pattern(labelled, split)}"
        read = webdataset.WebDataset(shards, shardshuffle=False).decode("pil")
        found = [
            {"key": key, "label": label, "source": about["source"]}
            for key, image, label, about in read.to_tuple("__key__", "jpg;png;webp", "cls", "json")
            if image.size == (40, 32) and about["class"] == CLASSES[label] == about["source"].split("/")[0]
        ]
        assert found == rows(labelled, split)


def test_webdataset_reads_captions(captioned: Dataset) -> None:
    shards = f"{captioned.url}/{pattern(captioned, 'train')}"
    read = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("jpg", "txt", "json"))
    assert [about["key"] for *_, about in read] == [row["key"] for row in rows(captioned, "train")]
    for image, text, about in read:
        expected = words(int(about["source"].removesuffix(".jpg")))
        assert image.size == (40, 32)
        assert text == about["caption"] == expected[0]
        assert about["captions"] == expected


def histogram(labels: list[int]) -> list[int]:
    return np.bincount(labels, minlength=len(CLASSES)).tolist()


def test_timm_reads_a_split_by_its_pattern(labelled: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train", "val"):
        info = labelled.split(split)
        read = timm.data.create_dataset(
            "wds/", root=labelled.url, split=f"{pattern(labelled, split)}|{info.samples}", is_training=False
        )
        assert len(read) == info.samples
        seen = list(read)
        assert all(image.size == (40, 32) and image.mode == "RGB" for image, _ in seen)
        assert [label for _, label in seen] == [row["label"] for row in rows(labelled, split)]
    assert not [record for record in caplog.records if "Handling webdataset error" in record.message]


def test_timm_trains_through_its_loader(labelled: Dataset) -> None:
    info = labelled.split("train")
    split = f"{pattern(labelled, 'train')}|{info.samples}"
    read = timm.data.create_dataset("wds/", root=labelled.url, split=split, is_training=True, batch_size=7)
    loader = timm.data.create_loader(
        read, input_size=(3, 32, 32), batch_size=7, is_training=True, num_workers=0, use_prefetcher=False
    )
    batches = [(images.shape[1:], labels) for images, labels in loader]
    labels = torch.cat([labels for _, labels in batches]).tolist()
    assert {shape for shape, _ in batches} == {(3, 32, 32)}
    assert len(labels) == -(-info.samples // 7) * 7, "timm fills the last batch of an epoch up"
    assert histogram(labels[: info.samples]) == list(info.class_counts), "before that, every sample once"


def test_timm_reads_splits_by_name_once_an_info_file_says_what_they_are(labelled: Dataset, tmp_path: Path) -> None:
    splits = {
        split: {
            "name": split,
            "num_samples": info.samples,
            "filenames": [labelled.shard_url(shard) for shard in labelled.shards(split)],
            "shard_lengths": [shard.samples for shard in labelled.shards(split)],
        }
        for split, info in labelled.manifest.splits.items()
    }
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    read = timm.data.create_dataset("wds/", root=str(tmp_path), split="val", is_training=False)
    assert [label for _, label in read] == [row["label"] for row in rows(labelled, "val")]


def test_open_clip_reads_captions(
    captioned: Dataset, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pytest.importorskip("open_clip_train.data")
    # open_clip 3.3 stumbles over the mark that webdataset 1.0 puts at every tar's end, whoever wrote the tar.
    monkeypatch.setattr(data, "tar_file_expander", partial(tar_file_expander, eof_value=None))
    info = captioned.split("val")
    args = SimpleNamespace(
        train_data=f"{captioned.url}/{pattern(captioned, 'train')}",
        train_num_samples=captioned.split("train").samples,
        train_data_upsampling_factors=None,
        val_data=f"{captioned.url}/{pattern(captioned, 'val')}",
        val_num_samples=info.samples,
        dataset_resampled=False,
        batch_size=4,
        workers=0,
        world_size=1,
        seed=0,
    )

    def show(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image).copy())

    with caplog.at_level(logging.WARNING):
        for split, training in (("val", False), ("train", True)):
            loaded = data.get_wds_dataset(args, show, training, tokenizer=lambda text: [text]).dataloader
            images, texts = zip(*loaded, strict=True)
            said = [text for batch in texts for text in batch]
            expected = sorted(words(int(row["source"].removesuffix(".jpg")))[0] for row in rows(captioned, split))
            assert all(batch.shape[1:] == (32, 40, 3) for batch in images)
            if training:  # whole batches: open_clip begins the shards again to fill up the last one
                assert len(said) == -(-len(expected) // 4) * 4
                assert set(said) == set(expected)
            else:
                assert sorted(said) == expected
    assert "Handling webdataset error" not in caplog.text


def test_members_are_named_as_img2dataset_names_them(captioned: Dataset) -> None:
    for shard in captioned.shards("train"):
        with tarfile.open(captioned.shard_url(shard)) as tar:
            members = tar.getmembers()
            samples = [members[start : start + 3] for start in range(0, len(members), 3)]
            assert len(samples) == shard.samples
            for sample in samples:
                (stem,) = {member.name.split(".")[0] for member in sample}
                assert [member.name for member in sample] == [f"{stem}.{kind}" for kind in ("jpg", "txt", "json")]
                image, text, about = (tar.extractfile(member).read() for member in sample)  # type: ignore[union-attr]
                said = json.loads(about)
                assert said["key"] == stem
                assert said["caption"] == text.decode()
                assert (said["width"], said["height"]) == Image.open(io.BytesIO(image)).size
                assert said.keys() >= {
                    "key",
                    "caption",
                    "width",
                    "height",
                    "original_width",
                    "original_height",
                    "sha256",
                }
