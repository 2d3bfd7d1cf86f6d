"""Versions of a dataset: published at once, opened by URL or reference, described in one sentence when wrong."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from vitcore import storage
from vitcore.data.dataset import index, manifest
from vitcore.data.dataset.manifest import Dataset, DatasetRef, Manifest, SplitInfo
from vitcore.data.dataset.moments import Moments
from vitcore.data.dataset.shard import Shard
from vitcore.errors import RequestError, WorkError


def put_shard(root: Path, split: str, number: int, labels: list[int]) -> Shard:
    rows = [
        {
            "key": f"{split}{number}{row}",
            "offset": 512 + row,
            "size": 10,
            "extension": "jpg",
            "label": label,
            "captions": ["a", "b"][:row],
            "width": 4,
            "height": 3,
            "hash": bytes([row]) * 32,
            "phash": 2**64 - 1,
            "group": "g",
            "source": "s",
        }
        for row, label in enumerate(labels)
    ]
    table = pa.Table.from_pylist(rows, schema=index.SCHEMA)
    name = f"{split}/{number:05d}.index.parquet"
    storage.write(str(root / name), index.encode(table))
    return Shard(
        name=f"{split}/{number:05d}.tar",
        samples=len(labels),
        bytes=1,
        checksum=f"{split}{number}",
        index=name,
        index_digest=index.rows_digest(table),
    )


def version(classes: tuple[str, ...] = ("cat", "dog"), source: str = "somewhere") -> Manifest:
    return Manifest(
        fields=("image", "label"),
        classes=classes,
        splits={"train": SplitInfo(samples=5, shards=2, bytes=2, class_counts=(3, 2))},
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        source=source,
        settings={},
    )


@pytest.fixture
def shards(tmp_path: Path) -> dict[str, list[Shard]]:
    return {"train": [put_shard(tmp_path, "train", 0, [0, 1, 0]), put_shard(tmp_path, "train", 1, [1, 0])]}


def test_publish_and_open(tmp_path: Path, shards: dict[str, list[Shard]]) -> None:
    ref = manifest.publish(str(tmp_path), version(), shards)
    for dataset in (Dataset.open(str(tmp_path)), Dataset.open(ref), Dataset.open(f"file://{tmp_path}")):
        assert dataset.ref == ref
        assert dataset.manifest.classes == ("cat", "dog")
        assert dataset.shards("train") == shards["train"]
        assert dataset.split("train").class_counts == (3, 2)


def test_index_by_column(tmp_path: Path, shards: dict[str, list[Shard]]) -> None:
    manifest.publish(str(tmp_path), version(), shards)
    columns = Dataset.open(str(tmp_path)).index("train")
    assert len(columns) == 5
    assert columns.labels.tolist() == [0, 1, 0, 1, 0]
    assert columns.shard_of.tolist() == [0, 0, 0, 1, 1]
    assert columns.starts.tolist() == [0, 3, 5]
    assert columns.offsets.tolist() == [512, 513, 514, 512, 513]
    assert columns.keys.tolist() == ["train00", "train01", "train02", "train10", "train11"]
    assert columns.hashes[2].tobytes() == b"\2" * 32
    assert [columns.captions(sample) for sample in (0, 1, 2)] == [(), ("a",), ("a", "b")]


def test_the_digest_covers_content_not_place(tmp_path: Path, shards: dict[str, list[Shard]]) -> None:
    digest = manifest.version_digest(version(), shards)
    moved = {"train": [shard.model_copy(update={"name": "/else/where.tar"}) for shard in shards["train"]]}
    assert manifest.version_digest(version(source="elsewhere"), moved) == digest
    relabelled = {"train": [put_shard(tmp_path / "b", "train", 0, [0, 1, 1]), shards["train"][1]]}
    assert manifest.version_digest(version(), relabelled) != digest
    assert manifest.version_digest(version(("dog", "cat")), shards) != digest
    assert manifest.version_digest(version(), {"val": shards["train"]}) != digest


def test_versions_stay_and_are_found_by_identity(tmp_path: Path, shards: dict[str, list[Shard]]) -> None:
    url, half = str(tmp_path), {"train": shards["train"][:1]}
    first = manifest.publish(url, version(), shards, identity="one")
    second = manifest.publish(url, version(), half, expected=first.digest, identity="two")
    assert Dataset.open(url).digest == second.digest
    assert len(Dataset.open(first).shards("train")) == 2
    assert manifest.publish(url, version(), shards, expected=second.digest, identity="three") == first
    assert [manifest.find(url, name) for name in ("one", "two", "three", "four")] == [first, second, first, None]
    assert manifest.versions(url)[0] == first.digest
    assert manifest.find(str(tmp_path / "nothing"), "one") is None


def test_who_publishes_second_is_told(tmp_path: Path, shards: dict[str, list[Shard]]) -> None:
    url, half = str(tmp_path), {"train": shards["train"][:1]}
    first = manifest.publish(url, version(), shards)
    second = manifest.publish(url, version(), half, expected=first.digest)
    with pytest.raises(WorkError, match="somebody else published"):
        manifest.publish(url, version(("dog", "cat")), shards, expected=first.digest)
    assert Dataset.open(url).digest == second.digest
    manifest.publish(url, version(), half, expected=first.digest)  # it says already what is asked for


def test_moments_of_a_union_are_those_of_all_its_pixels() -> None:
    one = Moments(pixels=2, sums=(10, 20, 30), squares=(58, 208, 458))
    mean, std = (one + Moments(pixels=2, sums=(10, 20, 30), squares=(58, 208, 458))).statistics()
    assert mean == pytest.approx((5 / 255, 10 / 255, 15 / 255), abs=1e-6)
    assert std == pytest.approx((2 / 255, 2 / 255, 2 / 255), abs=1e-6)
    assert Moments().statistics() == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_nothing_is_visible_before_the_pointer(
    tmp_path: Path, shards: dict[str, list[Shard]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "point", lambda url, digest, **_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        manifest.publish(str(tmp_path), version(), shards)
    with pytest.raises(RequestError, match="holds no dataset"):
        Dataset.open(str(tmp_path))


def test_wrong_requests_get_one_sentence(tmp_path: Path, shards: dict[str, list[Shard]]) -> None:
    url = str(tmp_path)
    with pytest.raises(RequestError, match="does not exist"):
        Dataset.open(f"{url}/nowhere")
    with pytest.raises(RequestError, match=r"holds no dataset .* vit ingest"):
        Dataset.open(url)
    with pytest.raises(RequestError, match="pipe: URLs are not read"):
        Dataset.open("pipe:cat x")
    ref = manifest.publish(url, version(), shards)
    dataset = Dataset.open(url)
    with pytest.raises(RequestError, match="no split 'test'; it has: train"):
        dataset.index("test")
    with pytest.raises(RequestError, match="has no captions"):
        dataset.require("image", "captions")
    dataset.require("label")
    with pytest.raises(RequestError, match=f"no version 0123456789abcdef; it has: {ref.digest}"):
        Dataset.open(DatasetRef(url=url, digest="0123456789abcdef"))
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(RequestError, match="not the pointer of a dataset"):
        Dataset.open(url)


def test_damage_is_named(tmp_path: Path, shards: dict[str, list[Shard]]) -> None:
    url = str(tmp_path)
    ref = manifest.publish(url, version(), shards)
    (tmp_path / "train/00000.index.parquet").write_bytes(b"no parquet")
    with pytest.raises(WorkError, match=r"00000\.index.parquet is missing or damaged"):
        _ = Dataset.open(url).index("train").labels
    put_shard(tmp_path, "train", 0, [0])
    with pytest.raises(WorkError, match="has 1 rows, its shard 3 samples"):
        _ = Dataset.open(url).index("train").labels
    (tmp_path / f"_vit/{ref.digest}.train.parquet").unlink()
    with pytest.raises(WorkError, match="shard list"):
        Dataset.open(url).shards("train")
    path = tmp_path / f"_vit/{ref.digest}.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "format": 99}))
    with pytest.raises(RequestError, match="format 99"):
        Dataset.open(url)
    path.write_text("{}")
    with pytest.raises(WorkError, match="not a manifest"):
        Dataset.open(url)
