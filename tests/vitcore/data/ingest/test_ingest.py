"""From raw photographs to a published dataset: deterministic, restartable, readable by others."""

import dataclasses
import io
import json
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import webdataset
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from pydantic import ValidationError

from vitcore import storage
from vitcore.data.dataset import manifest
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.ingest import shards
from vitcore.data.ingest.ingest import ingest, plan, publish
from vitcore.data.ingest.parallel import threads
from vitcore.data.ingest.plan import assign
from vitcore.data.ingest.shards import write_shard
from vitcore.data.ingest_config import IngestConfig, SplitFractions
from vitcore.errors import RequestError, WorkError

CLASSES = ("cat", "dog", "owl")
THIRDS = IngestConfig(splits=SplitFractions(train=0.6, val=0.2, test=0.2))


def photograph(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def fill(root: Path, each: int = 20) -> Path:
    for number, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for item in range(each):
            photograph(1000 * number + item).save(root / name / f"{item} ü.jpg", quality=95)
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("raw") / "corpus")


def tars(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.suffix == ".tar"}


def many_shards(config: IngestConfig = THIRDS) -> IngestConfig:
    """Shards of a few of these photographs."""
    return config.model_copy(update={"shard_mb": 0.015})


def test_a_folder_becomes_a_dataset(source: Path, tmp_path: Path) -> None:
    ref = ingest(str(source), str(tmp_path), THIRDS)
    dataset = Dataset.open(ref)
    info = dataset.manifest
    assert info.classes == CLASSES
    assert info.fields == ("image", "label")
    assert list(info.splits) == ["train", "val", "test"]
    assert sum(split.samples for split in info.splits.values()) == 60
    assert [sum(counts) for counts in zip(*(s.class_counts for s in info.splits.values()), strict=True)] == [20] * 3
    index = dataset.index("train")
    assert len(set(index.keys)) == len(index) == info.splits["train"].samples
    tar = storage.local_path(dataset.shard_url(dataset.shards("train")[0])).read_bytes()
    for row in range(len(index)):
        data = tar[index.offsets[row] : index.offsets[row] + index.sizes[row]]
        original = (source / index.sources[row]).read_bytes()
        assert data == original, "small plain photographs pass untouched"
        assert CLASSES[index.labels[row]] == index.sources[row].split("/")[0]
    assert (index.widths == 40).all()
    assert (index.heights == 32).all()


def test_mean_and_deviation_are_those_of_the_training_pixels(source: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(ingest(str(source), str(tmp_path), THIRDS))
    files = [source / name for name in dataset.index("train").sources]
    pixels = np.stack([np.asarray(Image.open(file)) for file in files]).reshape(-1, 3) / 255
    assert dataset.manifest.mean == pytest.approx(pixels.mean(0), abs=1e-5)
    assert dataset.manifest.std == pytest.approx(pixels.std(0), abs=1e-5)


def test_shards_are_plain_webdataset(source: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(ingest(str(source), str(tmp_path), many_shards()))
    urls = [dataset.shard_url(shard) for shard in dataset.shards("train")]
    assert len(urls) > 3
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("jpg", "cls", "json", "__key__"))
    index = dataset.index("train")
    assert [key for *_, key in read] == index.keys.tolist()
    assert [label for _, label, *_ in read] == index.labels.tolist()
    assert all(image.size == (40, 32) for image, *_ in read)
    assert [meta["class"] for _, _, meta, _ in read] == [CLASSES[label] for label in index.labels]


def test_headers_name_nobody_and_no_time(source: Path, tmp_path: Path) -> None:
    ingest(str(source), str(tmp_path), THIRDS)
    (path,) = (tmp_path / "train").glob("*-00000.tar")
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    kinds = [member.name.partition(".")[2] for member in members]
    assert kinds == ["jpg", "cls", "json"] * (len(members) // 3)


def test_the_same_input_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    config = many_shards()
    one = ingest(str(source), str(tmp_path / "one"), config, mapper=threads(1))
    planned = plan(str(source), str(tmp_path / "two"), config)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(write_shard, reversed(planned.jobs)))
    two = publish(planned, results)
    assert one.digest == two.digest
    assert tars(tmp_path / "one") == tars(tmp_path / "two")
    other = ingest(str(source), str(tmp_path / "three"), config.model_copy(update={"seed": 1}))
    assert other.digest != one.digest


def test_every_shard_is_a_fair_sample(source: Path, tmp_path: Path) -> None:
    ingest(str(source), str(tmp_path), many_shards())
    shards = Dataset.open(str(tmp_path)).shards("train")
    assert max(shard.samples for shard in shards) - min(shard.samples for shard in shards) <= 1
    labels = Dataset.open(str(tmp_path)).index("train").labels
    assert len(set(labels[: shards[0].samples + shards[1].samples])) > 1


def test_shards_are_about_as_large_as_asked(source: Path, tmp_path: Path) -> None:
    ingest(str(source), str(tmp_path), THIRDS.model_copy(update={"shard_mb": 0.03}))
    sizes = [shard.bytes for shard in Dataset.open(str(tmp_path)).shards("train")]
    assert len(sizes) > 3
    assert 0.5 < sum(sizes) / len(sizes) / 30_000 < 1.2


def test_splits_stick_to_content_and_groups(source: Path, tmp_path: Path) -> None:
    def splits(corpus: Path, config: IngestConfig) -> dict[bytes, str]:
        jobs = plan(str(corpus), str(tmp_path / "out"), config).jobs
        return {origin: job.split for job in jobs for origin in job.samples.column("origin").to_pylist()}

    before = splits(source, THIRDS)
    grown = fill(tmp_path / "grown", 30)
    after = splits(grown, THIRDS.model_copy(update={"seed": 7, "resize": 16}))
    assert before.items() <= after.items()
    assert len(after) == 90
    table = tmp_path / "table.csv"
    lines = [f"grown/cat/{item} ü.jpg,patient{item % 7}" for item in range(30)]
    table.write_text("image,group\n" + "\n".join(lines))
    jobs = plan(str(table), str(tmp_path / "out"), THIRDS).jobs
    groups = [set(job.samples.column("group").to_pylist()) for job in jobs]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 7


def test_fractions_are_kept_and_test_never_shrinks() -> None:
    names = [str(number) for number in range(5000)]
    counts = Counter(assign(name, SplitFractions()) for name in names)
    assert counts["train"] / 5000 == pytest.approx(0.8, abs=0.02)
    small, large = SplitFractions(train=0.8, val=0.1, test=0.1), SplitFractions(train=0.6, val=0.3, test=0.1)
    assert all((assign(name, small) == "test") == (assign(name, large) == "test") for name in names)


def test_given_splits_come_first(tmp_path: Path) -> None:
    for number, path in enumerate(["train/cat/a.png", "train/dog/b.png", "test/cat/c.png", "val/dog/d.png"]):
        (tmp_path / "raw" / path).parent.mkdir(parents=True)
        photograph(number).save(tmp_path / "raw" / path)
    dataset = Dataset.open(ingest(str(tmp_path / "raw"), str(tmp_path / "out")))
    assert {split: info.samples for split, info in dataset.manifest.splits.items()} == {"train": 2, "val": 1, "test": 1}
    assert dataset.index("test").sources.tolist() == ["test/cat/c.png"]
    assert dataset.index("test").extensions.tolist() == ["png"]


def test_captions(tmp_path: Path) -> None:
    photograph(1).save(tmp_path / "a.jpg")
    photograph(2).save(tmp_path / "b.jpg")
    (tmp_path / "t.csv").write_text("image,caption,split\na.jpg,ein Hund,train\na.jpg,größer,train\nb.jpg,x,train\n")
    dataset = Dataset.open(ingest(str(tmp_path / "t.csv"), str(tmp_path / "out")))
    assert dataset.manifest.fields == ("image", "captions")
    assert dataset.manifest.splits["train"].class_counts == ()
    index = dataset.index("train")
    row = index.sources.tolist().index("a.jpg")
    assert index.captions(row) == ("ein Hund", "größer")
    assert (index.labels == -1).all()
    (url,) = (dataset.shard_url(shard) for shard in dataset.shards("train"))
    texts = {sample["txt"] for sample in webdataset.WebDataset(url, shardshuffle=False).decode()}
    assert texts == {"ein Hund", "x"}


def test_copies_get_keys_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "raw").mkdir(exist_ok=True)
        photograph(1).save(tmp_path / "raw" / f"{name}.jpg")
    keys: dict[str, str] = {}
    for job in plan(str(tmp_path / "raw"), str(tmp_path / "out")).jobs:
        columns = (job.samples.column(name).to_pylist() for name in ("source", "key", "origin"))
        keys |= {source: key for source, key, _ in zip(*columns, strict=True)}
        stem = job.samples.column("origin")[0].as_py().hex()[:16]
    assert keys == {"a.jpg": stem, "b.jpg": f"{stem}-1", "c.jpg": f"{stem}-2"}


def test_a_second_ingest_is_recognised(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path)
    first = ingest(str(source), url, THIRDS)
    other = ingest(str(source), url, many_shards())
    assert Dataset.open(url).digest == other.digest
    assert len(tars(tmp_path)) == 3 + sum(len(Dataset.open(other).shards(s)) for s in ("train", "val", "test"))
    for split in ("train", "val", "test"):
        for shard in Dataset.open(first).shards(split):
            assert storage.size(Dataset.open(first).shard_url(shard)) == shard.bytes, "older versions stay readable"
    monkeypatch.setattr(shards, "convert", None)
    assert ingest(str(source), url, THIRDS) == first
    assert Dataset.open(url).digest == first.digest
    assert manifest.find(url, plan(str(source), url, THIRDS).identity) == first


def test_a_rerun_writes_only_what_is_missing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan(str(source), str(tmp_path), many_shards())
    jobs = planned.jobs
    for job in jobs[:3]:
        write_shard(job)
    (tmp_path / f"{jobs[1].stem}_stats.json").unlink()  # killed before its marker
    (tmp_path / f"{jobs[2].stem}.tar").write_bytes(b"short")  # finished, then damaged
    written = []
    original = shards._Writer

    def spy(file: io.BufferedWriter, job: shards.ShardJob) -> shards._Writer:
        written.append(job.stem)
        return original(file, job)

    monkeypatch.setattr(shards, "_Writer", spy)
    results = [write_shard(job) for job in jobs]
    assert written == [job.stem for job in jobs[1:]]
    whole = ingest(str(source), str(tmp_path / "whole"), many_shards())
    assert publish(planned, results).digest == whole.digest
    assert {path.name for path in tmp_path.rglob(".*")} <= {".dataset.json.lock"}, "nothing temporary is left"


def test_two_plans_never_write_one_file(source: Path, tmp_path: Path) -> None:
    one = plan(str(source), str(tmp_path), many_shards())
    other = plan(str(source), str(tmp_path), many_shards(THIRDS.model_copy(update={"seed": 3})))
    assert not {job.stem for job in one.jobs} & {job.stem for job in other.jobs}


def test_a_missing_shard_is_not_published(source: Path, tmp_path: Path) -> None:
    planned = plan(str(source), str(tmp_path), many_shards())
    results = [write_shard(job) for job in planned.jobs]
    with pytest.raises(WorkError, match="not every shard"):
        publish(planned, results[1:])


def test_a_photograph_that_changes_meanwhile_fails_the_shard(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    photograph(1).save(tmp_path / "raw/a.jpg")
    (job,) = plan(str(tmp_path / "raw"), str(tmp_path / "out")).jobs
    photograph(2).save(tmp_path / "raw/a.jpg")
    with pytest.raises(WorkError, match="changed while"):
        write_shard(job)
    (tmp_path / "raw/a.jpg").unlink()
    with pytest.raises(WorkError, match="not read again"):
        write_shard(job)
    (tmp_path / "file").touch()
    with pytest.raises(WorkError, match="could not be written"):
        write_shard(dataclasses.replace(job, url=str(tmp_path / "file")))


def test_rejects_are_counted_listed_and_bounded(tmp_path: Path) -> None:
    raw = fill(tmp_path / "raw", 10)
    (raw / "cat/zero.jpg").touch()
    (raw / "cat/half.jpg").write_bytes((raw / "cat/1 ü.jpg").read_bytes()[:300])
    (raw / "dog/page.jpg").write_bytes(b"<html>")
    (raw / "dog/gone.jpg").symlink_to("nowhere")
    with pytest.raises(WorkError, match=r"4 of 34 .*1 empty file.*budget of 1\.00%.*rejects\.jsonl"):
        ingest(str(raw), str(tmp_path / "out"))
    with pytest.raises(RequestError):
        Dataset.open(str(tmp_path / "out"))
    lenient = IngestConfig(error_budget=0.2)
    info = Dataset.open(ingest(str(raw), str(tmp_path / "out"), lenient)).manifest
    reasons = {"empty file": 1, "no such file": 1, "not an image": 1, "truncated or corrupt": 1}
    assert info.rejects == reasons
    assert info.rejects_file is not None
    listed = [json.loads(line) for line in (tmp_path / "out" / info.rejects_file).read_text().splitlines()]
    assert {line["source"]: line["reason"] for line in listed}["dog/page.jpg"] == "not an image"


def test_all_rejected_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.jpg").write_bytes(b"x")
    with pytest.raises(WorkError, match="1 of 1"):
        ingest(str(tmp_path / "raw"), str(tmp_path / "out"), IngestConfig(error_budget=1))


def test_wrong_requests(source: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="would lie inside its source"):
        ingest(str(source), str(source / "out"))
    (tmp_path / "t.csv").write_text("image\nnowhere.jpg\n")
    with pytest.raises(RequestError, match="none of the 1 photographs"):
        plan(str(tmp_path / "t.csv"), str(tmp_path / "out"))
    for wrong in ({"shard_mb": 0}, {"quality": 101}, {"error_budget": 2}, {"splits": {"train": 0.5}}, {"sharrd": 1}):
        with pytest.raises(ValidationError):
            IngestConfig.model_validate(wrong)


def test_a_store(source: Path, tmp_path: Path) -> None:
    MemoryFileSystem.store.clear()
    remote = MemoryFileSystem()
    remote.put(str(source), "/raw", recursive=True)
    ref = ingest("memory://raw", "memory://out/data", many_shards())
    local = ingest(str(source), str(tmp_path), many_shards())
    assert ref.digest == local.digest
    assert manifest.find("memory://out/data", plan("memory://raw", "memory://out/data", many_shards()).identity) == ref
    assert len(Dataset.open("memory://out/data").index("train")) == len(Dataset.open(local).index("train"))
