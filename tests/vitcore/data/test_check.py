"""What `check` sees in a dataset that something happened to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from vitcore.data import index, manifest
from vitcore.data.check import Finding, check
from vitcore.data.ingest import ingest
from vitcore.data.ingest_config import IngestConfig
from vitcore.data.manifest import Dataset, DatasetRef
from vitcore.errors import RequestError


def photograph(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(coarse).resize((24, 24)).save(path)


def corpus(root: Path, **splits: dict[str, list[int]]) -> str:
    for split, classes in splits.items():
        for name, seeds in classes.items():
            for number, seed in enumerate(seeds):
                photograph(root / "raw" / split / name / f"{number}.png", seed)
    return str(root / "raw")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    source = corpus(tmp_path, train={"a": [1, 2, 3], "b": [4, 5]}, val={"a": [6], "b": [7]}, test={"a": [8], "b": [9]})
    return Dataset.open(ingest(source, str(tmp_path / "data")))


def severities(findings: list[Finding]) -> list[str]:
    return [finding.severity for finding in findings]


def the_error(at: str | DatasetRef) -> str:
    (finding,) = (one for one in check(at, "full") if one.severity == "error")
    return finding.text


def republish(dataset: Dataset, split: str, **update: Any) -> DatasetRef:
    """The dataset with its first shard of `split` described otherwise, as a broken writer would."""
    shards = {name: dataset.shards(name) for name in dataset.manifest.splits}
    shards[split][0] = shards[split][0].model_copy(update=update)
    return manifest.publish(dataset.url, dataset.manifest, shards)


def test_a_good_dataset_has_no_findings(dataset: Dataset) -> None:
    seen: list[tuple[int, int]] = []
    assert check(dataset.url, progress=lambda done, total: seen.append((done, total))) == []
    assert check(dataset.ref, "full") == []
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no dataset"):
        check(str(tmp_path))


def test_missing_short_and_changed_shards(dataset: Dataset) -> None:
    tar = Path(dataset.url) / "train/00000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])
    assert "checksum" in the_error(dataset.url)
    tar.write_bytes(whole[:-512])
    assert f"has {len(whole) - 512} bytes instead of {len(whole)}" in the_error(dataset.url)
    tar.unlink()
    assert "missing" in the_error(dataset.url)


def test_index_files(dataset: Dataset) -> None:
    path = Path(dataset.url) / "train/00000.index.parquet"
    table = index.decode(path.read_bytes())
    labels = table.column("label").to_pylist()
    relabelled = table.set_column(
        table.schema.get_field_index("label"), index.SCHEMA.field("label"), [[1 - label for label in labels]]
    )
    path.write_bytes(index.encode(relabelled))
    assert "not the one that was published" in the_error(dataset.url)
    path.unlink()
    assert "missing or damaged" in the_error(dataset.url)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("offset", 9999, "lies elsewhere"),
        ("key", "nobody", "is not in the index"),
        ("hash", bytes(32), "its bytes are not the ones in the index"),
        ("width", 999, "unlike its index"),
    ],
)
def test_an_index_that_does_not_fit_its_tar(dataset: Dataset, column: str, value: Any, message: str) -> None:
    path = Path(dataset.url) / "val/00000.index.parquet"
    rows = index.decode(path.read_bytes()).to_pylist()
    rows[0][column] = value
    table = index.pa.Table.from_pylist(rows, schema=index.SCHEMA)
    path.write_bytes(index.encode(table))
    ref = republish(dataset, "val", index_digest=index.rows_digest(table))
    assert message in the_error(ref)


def test_an_unreadable_manifest_part(dataset: Dataset) -> None:
    (Path(dataset.url) / f"_vit/{dataset.digest}.val.parquet").unlink()
    assert "shard list" in the_error(dataset.url)
    path = Path(dataset.url) / f"_vit/{dataset.digest}.json"
    tree = json.loads(path.read_text())
    tree["splits"]["train"]["samples"] += 1
    del tree["splits"]["val"]
    path.write_text(json.dumps(tree))
    assert "does not add up" in the_error(dataset.url)


def test_leaks_copies_and_missing_classes(tmp_path: Path) -> None:
    source = corpus(tmp_path, train={"a": [1, 1, 2], "b": [4, 5]}, val={"a": [2, 6]}, test={"a": [8], "b": [9]})
    findings = check(ingest(source, str(tmp_path / "data")))
    assert severities(findings) == ["warning", "error", "note"]
    assert "val has no photograph of 1 classes (b)" in findings[0].text
    assert "1 photographs of val are in train too" in findings[1].text
    assert "1 photographs of train are copies" in findings[2].text


def test_a_class_without_training_photographs_is_an_error(tmp_path: Path) -> None:
    source = corpus(tmp_path, train={"a": [1]}, val={"a": [2], "b": [3]})
    assert "train has no photograph of 1 classes (b); add" in the_error(ingest(source, str(tmp_path / "data")))


def test_skew_and_rejects(tmp_path: Path) -> None:
    source = corpus(tmp_path, train={"a": list(range(101)), "b": [500]})
    (tmp_path / "raw/train/a/zero.png").touch()
    findings = check(ingest(source, str(tmp_path / "data")))
    assert severities(findings) == ["warning", "note"]
    assert "from 1 to 101" in findings[0].text
    assert "1 photographs were left out at ingest (1 empty file)" in findings[1].text


def test_groups_in_two_splits(tmp_path: Path) -> None:
    for seed in (1, 2):
        photograph(tmp_path / f"{seed}.png", seed)
    (tmp_path / "t.csv").write_text("image,group,split\n1.png,p1,train\n2.png,p1,test\n")
    findings = check(ingest(str(tmp_path / "t.csv"), str(tmp_path / "data")))
    assert severities(findings) == ["warning"]
    assert "1 groups are in both train and test (p1)" in findings[0].text


def test_a_store(tmp_path: Path) -> None:
    MemoryFileSystem.store.clear()
    ref = ingest(corpus(tmp_path, train={"a": [1, 2]}), "memory://checked", IngestConfig())
    assert check(ref, "full") == []
    MemoryFileSystem().pipe("/checked/train/00000.tar", b"x")
    assert "has 1 bytes" in the_error(ref)
