"""What `check` sees in a dataset that something happened to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from vitcore.data.dataset import index, manifest
from vitcore.data.dataset.edit import edit
from vitcore.data.dataset.manifest import Dataset, DatasetRef
from vitcore.data.ingest.ingest import ingest
from vitcore.data.ingest.mode import Mode
from vitcore.data.ingest_config import IngestConfig, SplitFractions
from vitcore.data.maintenance.census import drift
from vitcore.data.maintenance.check import check
from vitcore.data.maintenance.findings import Finding
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
    return manifest.publish(dataset.url, dataset.manifest, shards, expected=dataset.digest)


def first(dataset: Dataset, split: str, *, index: bool = False) -> Path:
    """A split's first tar, or its index."""
    shard = dataset.shards(split)[0]
    return Path(dataset.url) / (shard.index if index else shard.name)


def test_a_good_dataset_has_no_findings(dataset: Dataset) -> None:
    seen: list[tuple[int, int]] = []
    assert check(dataset.url, progress=lambda done, total: seen.append((done, total))) == []
    assert check(dataset.ref, "full") == []
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no dataset"):
        check(str(tmp_path))


def test_missing_short_and_changed_shards(dataset: Dataset) -> None:
    tar = first(dataset, "train")
    whole = tar.read_bytes()
    tar.write_bytes(whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])
    assert "checksum" in the_error(dataset.url)
    tar.write_bytes(whole[:-512])
    assert f"has {len(whole) - 512} bytes instead of {len(whole)}" in the_error(dataset.url)
    tar.unlink()
    assert "is missing; restore it from a copy, or publish a version without" in the_error(dataset.url)


def test_index_files(dataset: Dataset) -> None:
    path = first(dataset, "train", index=True)
    table = index.decode(path.read_bytes())
    labels = table.column("label").to_pylist()
    relabelled = table.set_column(
        table.schema.get_field_index("label"), index.SCHEMA.field("label"), [[1 - label for label in labels]]
    )
    path.write_bytes(index.encode(relabelled))
    assert "not the one that was published" in the_error(dataset.url)
    path.write_bytes(path.read_bytes()[:-20])
    assert "is damaged (" in the_error(dataset.url)
    path.unlink()
    assert "is missing; make it again with: vit check" in the_error(dataset.url)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("offset", 9999, "is not at its place in the tar"),
        ("key", "nobody", "is another member of the tar"),
        ("size", 1 << 40, "is another member of the tar"),
        ("hash", bytes(32), "its bytes are not the ones in the index"),
        ("width", 999, "unlike its index"),
    ],
)
def test_an_index_that_does_not_fit_its_tar(dataset: Dataset, column: str, value: Any, message: str) -> None:
    path = first(dataset, "val", index=True)
    rows = index.decode(path.read_bytes()).to_pylist()
    rows[0][column] = value
    table = pa.Table.from_pylist(rows, schema=index.SCHEMA)
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
    assert severities(findings) == ["warning", "error", "note"], findings
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
    (shard,) = Dataset.open(ref).shards("train")
    MemoryFileSystem().pipe(f"/checked/{shard.name}", b"x")
    assert "has 1 bytes" in the_error(ref)


def test_a_store_that_does_not_answer_is_not_taken_for_damage(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError("the store is away")

    monkeypatch.setattr("vitcore.data.maintenance.verify.storage.size", refuse)
    findings = check(dataset.url)
    assert severities(findings) == ["error"] * 3
    assert all("could not be read (the store is away); check again" in finding.text for finding in findings)


def test_a_tar_in_two_splits_is_read_once_and_edits_are_told(dataset: Dataset, tmp_path: Path) -> None:
    rows = index.decode(first(dataset, "train", index=True).read_bytes()).to_pylist()
    table = tmp_path / "edits.csv"
    table.write_text(f"key,split,label\n{rows[0]['key']},val,\n{rows[1]['key']},,{'ba'[rows[1]['label']]}\n")
    edited = Dataset.open(edit(dataset.url, str(table)))
    assert len(edited.shards("val")) == 2
    seen: list[tuple[int, int]] = []
    findings = check(edited.url, "full", progress=lambda done, total: seen.append((done, total)))
    assert severities(findings) == ["note"]
    assert "still hold 1 labels that were corrected and 0 photographs that were left out" in findings[0].text
    assert seen[-1] == (3, 3)
    table.write_text(f"key\n{rows[2]['key']}\n")
    edit(dataset.url, str(table), delete=True)
    assert "1 labels that were corrected and 1 photographs that were left out" in check(dataset.url)[-1].text


def test_older_versions(dataset: Dataset, tmp_path: Path) -> None:
    for path in (tmp_path / "raw/val").rglob("*.png"):
        path.unlink()
    photograph(tmp_path / "raw/val/a/new.png", 77)
    photograph(tmp_path / "raw/val/b/new.png", 78)
    newer = Dataset.open(ingest(str(tmp_path / "raw"), dataset.url))
    seen: list[tuple[int, int]] = []
    assert check(newer.url, versions="all", progress=lambda done, total: seen.append((done, total))) == []
    assert seen[-1] == (4, 4)  # the tars of train and test are shared
    first(dataset, "val").unlink()
    assert check(newer.url) == []
    (finding,) = check(newer.url, versions="all")
    assert finding.severity == "warning"
    assert f"is missing; only older versions need it ({dataset.digest})" in finding.text
    (Path(dataset.url) / f"_vit/{dataset.digest}.val.parquet").unlink()
    (finding,) = check(newer.url, versions="all")
    assert f"version {dataset.digest} cannot be opened any more" in finding.text


def test_captions(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        photograph(tmp_path / f"{seed}.png", seed)
    table = tmp_path / "t.csv"
    table.write_text("image,caption,split\n1.png,a dog,train\n2.png,a cat,train\n3.png,a cow,val\n")
    dataset = Dataset.open(ingest(str(table), str(tmp_path / "data")))
    assert check(dataset.url, "full") == []
    path = first(dataset, "train", index=True)
    rows = index.decode(path.read_bytes()).to_pylist()
    rows[0]["captions"] = ["  "]
    changed = pa.Table.from_pylist(rows, schema=index.SCHEMA)
    path.write_bytes(index.encode(changed))
    findings = check(republish(dataset, "train", index_digest=index.rows_digest(changed)))
    assert severities(findings) == ["warning"]
    assert "1 of 2 photographs of train have no caption" in findings[0].text


def test_photographs_without_labels(tmp_path: Path) -> None:
    for seed in range(4):
        photograph(tmp_path / "raw" / f"{seed}.png", seed)
    assert check(ingest(str(tmp_path / "raw"), str(tmp_path / "data")), "full") == []


def test_shards_that_are_no_fair_sample(tmp_path: Path) -> None:
    """A class appended every night: each shard holds one class, and steps would show one at a time."""
    config = IngestConfig(splits=SplitFractions(train=1, val=0, test=0))
    for night, name in enumerate("abc"):
        source = corpus(tmp_path / name, train={name: list(range(100 * night, 100 * night + 40))})
        ref = ingest(source, str(tmp_path / "data"), config, mode=Mode(append=True))
    (finding,) = check(ref)
    assert finding.severity == "warning"
    assert "3 of 3 shards of train" in finding.text
    assert "larger data.window" in finding.text
    assert check(ingest(str(tmp_path / "data"), str(tmp_path / "anew"), IngestConfig(shard_mb=0.2))) == []


def test_fair_samples_drift_by_chance_alone() -> None:
    rng = np.random.default_rng(0)
    for classes, samples in ((2, 200), (10, 500), (1000, 500), (1000, 20_000)):
        whole = rng.integers(50, 5000, classes)
        drifts = [drift(rng.multinomial(samples, whole / whole.sum()), whole) for _ in range(50)]
        assert max(drifts) < 0.02
        assert drift(np.bincount([0] * samples, minlength=classes), whole) > 0.2
