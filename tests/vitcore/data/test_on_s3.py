"""The whole data plane on a real S3 server: what comes out is what a local disk gives, whatever happens on the way."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.s3 import KEY, S3, SECRET
from tests.vitcore.data.loading.test_loader import assert_equal
from tests.vitcore.data.tars import labelled, picture, write_webdataset
from vitcore import storage
from vitcore.data.dataset.manifest import Dataset, DatasetRef
from vitcore.data.ingest.ingest import ingest
from vitcore.data.ingest.mode import Mode
from vitcore.data.ingest_config import IngestConfig, SplitFractions
from vitcore.data.loading.batch import Batch
from vitcore.data.loading.loader import EvalLoader, TrainLoader
from vitcore.data.maintenance.check import check
from vitcore.data.maintenance.findings import fit
from vitcore.data.reading.blocks import CacheConfig
from vitcore.data.reading.reader import Reader
from vitcore.errors import WorkError
from vitcore.recipe import AugmentConfig, DataConfig, Recipe
from vitcore.sink import NullSink
from vitcore.storage import retry
from vitcore.train.loop import train
from vitcore.world import World

CONFIG = IngestConfig(shard_mb=0.3)
DATA = DataConfig(image_size=16, lanes=6, window=10, augment=AugmentConfig(randaug_layers=1, mixup=0.5))
BATCH, STEPS = 24, 9  # an epoch of 174 samples, and a bit
WRONG = "wrong-secret-never-to-be-seen"


def save(path: Path, seed: int) -> None:
    """Noise of about 15 kB, so that an index is small beside it as it is beside photographs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (128, 128, 3), np.uint8)
    Image.fromarray(noise).save(path, quality=85)


def upload(folder: Path, url: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            storage.write(storage.join(url, str(path.relative_to(folder))), path.read_bytes())


def contents(url: str) -> dict[str, bytes]:
    """Shards and indexes; other files tell when and from where a version came."""
    paths = [path for path, *_ in storage.walk(url) if path.endswith((".tar", ".index.parquet"))]
    return {path: storage.read(storage.join(url, path)) for path in paths}


def stamps(url: str) -> dict[str, str]:
    return {path: stamp for path, _, stamp, _ in storage.walk(url)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    for split, count in {"train": 58, "val": 11}.items():
        for label, name in enumerate(("ant", "bee", "wasp")):
            for number in range(count):
                save(root / split / name / f"{number:03d}.jpg", 1000 * len(split) + 100 * label + number)
    return root


@pytest.fixture(scope="module")
def local(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.open(ingest(str(corpus), str(tmp_path_factory.mktemp("local") / "data"), CONFIG))


@pytest.fixture(scope="module")
def remote(corpus: Path, s3: S3) -> Dataset:
    return Dataset.open(ingest(str(corpus), s3.fresh(), CONFIG))


@pytest.fixture
def anew() -> Iterator[Callable[[], None]]:
    """Forgets the clients that there are, as a new process would find the environment; and again at the end."""
    kind = fsspec.get_filesystem_class("s3")
    yield kind.clear_instance_cache
    kind.clear_instance_cache()


@pytest.fixture
def blunt(monkeypatch: pytest.MonkeyPatch, anew: Callable[[], None]) -> None:
    """Clients that try nothing again, so that it is ours to do; and soon."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 1)
    monkeypatch.setattr(retry, "_FIRST_PAUSE", 0.01)
    anew()


def batches(dataset: Dataset, count: int = STEPS, **options: Any) -> list[Batch]:
    with TrainLoader(dataset, DATA, **{"batch_size": BATCH, "seed": 1, "threads": 0, **options}) as loader:
        return list(itertools.islice(loader, count))


def evaluated(dataset: Dataset, **options: Any) -> list[Batch]:
    with EvalLoader(dataset, "val", image_size=16, batch_size=7, **options) as loader:
        return list(loader)


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert_equal(one, other)


# Ingest, night after night


@pytest.mark.parametrize("source", ["here", "there"])
def test_the_same_version_wherever_corpus_and_dataset_lie(corpus: Path, local: Dataset, s3: S3, source: str) -> None:
    root = s3.fresh()
    if source == "there":
        upload(corpus, storage.join(root, "raw"))
    ref = ingest(storage.join(root, "raw") if source == "there" else str(corpus), storage.join(root, "data"), CONFIG)
    assert ref == DatasetRef(url=storage.join(root, "data"), digest=local.digest)
    assert contents(ref.url) == contents(local.url)
    assert check(ref.url, "full") == check(local.url, "full")
    s3.proxy.reset()
    assert check(ref.url) == []
    tars = sum(info.bytes for info in local.manifest.splits.values())
    assert sum(s3.requests.served.values()) < 1.1 * tars, "every shard is read once"


def test_the_second_night_moves_only_what_is_new(s3: S3, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"shard_mb": 0.02, "splits": SplitFractions(train=0.7, val=0.3, test=0)})
    root = s3.fresh()
    raw, url, ours = storage.join(root, "raw"), storage.join(root, "data"), tmp_path / "raw"
    for number in range(24):
        save(ours / ("ant", "bee")[number % 2] / f"{number}.jpg", number)
    upload(ours, raw)
    first = ingest(raw, url, config)
    before = stamps(url)
    shutil.move(ours / "ant/4.jpg", ours / "bee/4.jpg")
    (ours / "bee/7.jpg").unlink()
    save(ours / "ant/new.jpg", 99)
    storage.remove(raw)
    upload(ours, raw)
    second = Dataset.open(ingest(raw, url, config))
    assert second.manifest.parent == first.digest
    assert second.manifest.change == "1 added, 1 edited, 1 left out"
    after = stamps(url)
    changed = {path for path in before if before[path] != after.get(path) and not path.startswith("_vit/ledger/")}
    assert changed == {"dataset.json"}, "what was published stays as it is"
    assert fit(check(url, "full"))
    s3.proxy.reset()
    assert ingest(raw, url, config) == second.ref
    assert not [path for path in s3.requests.served if "/raw/" in path], "no photograph is read again"
    for number in range(3):
        save(tmp_path / f"more/wasp/{number}.jpg", 200 + number)
    third = Dataset.open(ingest(str(tmp_path / "more"), url, config, mode=Mode(append=True)))
    assert third.manifest.change == "3 added, 0 edited, 0 left out"
    assert third.manifest.classes == ("ant", "bee", "wasp")
    assert Dataset.open(first).ref == first, "the older version can still be opened"


def test_foreign_tars_are_adopted_where_they_lie(s3: S3, tmp_path: Path) -> None:
    root = s3.fresh()
    for number in range(3):
        write_webdataset(tmp_path / f"{number:04d}.tar", labelled(range(10 * number, 10 * number + 10)))
    upload(tmp_path, root)
    before = stamps(root)
    train = IngestConfig(splits=SplitFractions(train=1, val=0, test=0))
    dataset = Dataset.open(ingest(root, root, train))
    assert {path: stamp for path, stamp in stamps(root).items() if path in before} == before
    with Reader(dataset, "train") as reader:
        assert [reader.read(row) for row in range(30)] == [picture(number) for number in range(30)]
    elsewhere = ingest(storage.join(root, "{0000..0002}.tar"), s3.fresh(), train)
    assert elsewhere.digest == dataset.digest
    assert fit(check(elsewhere, "full"))


# Training and evaluation


@pytest.fixture(scope="module")
def reference(local: Dataset) -> dict[tuple[int, int], list[Batch]]:
    """Batches from a local disk, by world and rank."""
    return {(size, rank): batches(local, rank=rank, size=size) for size in (1, 3) for rank in range(size)}


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_batches_are_those_of_a_local_disk(
    local: Dataset, remote: Dataset, reference: dict[tuple[int, int], list[Batch]], size: int, threads: int
) -> None:
    for rank in range(size):
        assert_same(batches(remote, rank=rank, size=size, threads=threads), reference[size, rank])
        where = {"rank": rank, "size": size, "threads": threads}
        assert_same(evaluated(remote, **where), evaluated(local, **where))


@pytest.mark.parametrize("threads", [0, 2])
def test_a_resume_in_the_middle_of_a_window_goes_on_alike(
    remote: Dataset, reference: dict[tuple[int, int], list[Batch]], threads: int
) -> None:
    assert_same(batches(remote, STEPS - 4, start_step=4, threads=threads), reference[1, 0][4:])


@pytest.mark.parametrize("room", [0, 3])
def test_a_cache_too_small_for_its_windows_costs_requests_and_nothing_else(
    remote: Dataset, reference: dict[tuple[int, int], list[Batch]], room: int
) -> None:
    """`room` windows of the six lanes' twelve."""
    cache = CacheConfig(limit=room * 10 * 2**14, threads=2)
    with TrainLoader(remote, DATA, batch_size=BATCH, seed=1, threads=2, cache=cache) as loader:
        assert_same(list(itertools.islice(loader, STEPS)), reference[1, 0])
        assert loader._sources[0].reader.stats.direct_reads > 0


def test_ranks_share_the_bytes_of_an_epoch(remote: Dataset, s3: S3) -> None:
    """Everything counts: version, shard list and index, and what is fetched ahead of the next epoch."""
    world, epochs = 3, 3
    data = DATA.model_copy(update={"window": 5})
    total, samples = remote.split("train").bytes, remote.split("train").samples
    assert samples % DATA.lanes == 0, "an epoch of every lane ends at once"
    fetched = []
    for rank in range(world):
        s3.proxy.reset()
        fresh = Dataset.open(remote.ref)
        with TrainLoader(fresh, data, batch_size=6, seed=1, rank=rank, size=world, threads=0) as loader:
            shown = list(itertools.islice(loader, epochs * samples // 6))
            assert loader._sources[0].reader.stats.direct_reads == 0
        assert sum(int((batch.weights_S > 0).sum()) for batch in shown) == epochs * samples // world
        fetched.append(sum(s3.requests.served.values()) / epochs)
    assert max(fetched) <= 1.1 * total / world
    assert sum(fetched) <= 1.1 * total


# What goes wrong


def test_a_store_that_fails_a_tenth_of_the_time_changes_nothing(
    corpus: Path, local: Dataset, s3: S3, reference: dict[tuple[int, int], list[Batch]], blunt: None
) -> None:
    url = s3.fresh()
    s3.proxy.reset()
    with s3.proxy.faults(rate=0.1, seed=1):
        ref = ingest(str(corpus), url, CONFIG)
        assert ref.digest == local.digest
        assert check(ref, "full") == check(local.url, "full")
        dataset = Dataset.open(ref)
        assert_same(batches(dataset, threads=2), reference[1, 0])
        assert_same(evaluated(dataset), evaluated(local))
    assert set(s3.requests.failed) == set(s3.proxy.FAULTS), "every kind of failure was met"
    assert contents(url) == contents(local.url)


def test_a_training_on_a_failing_store_ends_alike(
    local: Dataset, remote: Dataset, s3: S3, plain: Recipe, make_request: Any, one_thread: None, blunt: None
) -> None:
    weights = []
    for dataset in (local, remote):
        request = make_request(plain, dataset.url.rsplit("/", 1)[-1], {"train.duration": "4 steps"})
        s3.proxy.reset()
        with s3.proxy.faults(rate=0.1, seed=2):
            result = train(request.model_copy(update={"data": dataset.ref}), World(), NullSink())
        weights.append(load_file(Path(result.model) / "model.safetensors"))
    assert s3.requests.failed
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0] | weights[1])


@pytest.fixture
def spoilt(local: Dataset, s3: S3) -> Callable[[Callable[[bytes], bytes]], Dataset]:
    """A copy in the bucket whose first training shard is changed as asked."""

    def spoil(change: Callable[[bytes], bytes]) -> Dataset:
        url = s3.fresh()
        upload(Path(local.url), url)
        name = storage.join(url, local.shards("train")[0].name)
        storage.write(name, change(storage.read(name)))
        return Dataset.open(url)

    return spoil


def test_a_flipped_bit_costs_one_photograph(local: Dataset, spoilt: Callable[..., Dataset]) -> None:
    index = local.index("train")
    at = int(index.offsets[2]) + int(index.sizes[2]) // 2

    def flip(data: bytes) -> bytes:
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    lost(local, spoilt(flip), {2})


def test_a_truncated_object_costs_the_photographs_behind_its_end(
    local: Dataset, spoilt: Callable[..., Dataset]
) -> None:
    index = local.index("train")
    count = local.shards("train")[0].samples
    end = int(index.offsets[count // 2]) + 10
    lost(local, spoilt(lambda data: data[:end]), set(range(count // 2, count)))


def lost(local: Dataset, dataset: Dataset, rows: set[int]) -> None:
    """Exactly these samples are left out of the batches, and counted; `check` finds the shard."""
    keys = {dataset.index("train").key(row) for row in rows}
    seen = set()
    for ours, theirs in zip(batches(dataset, threads=2), batches(local), strict=True):
        seen |= set(ours.bad)
        gone = torch.tensor([sample in rows for sample in theirs.samples_S.tolist()])
        assert torch.equal(ours.weights_S, theirs.weights_S * ~gone)
        assert torch.equal(ours.images_SCHW[~gone], theirs.images_SCHW[~gone])
        assert len(ours.bad) == int(gone.sum())
    assert seen == keys
    (finding,) = (finding for finding in check(dataset.url, "full") if finding.severity == "error")
    assert local.shards("train")[0].name in finding.text


@pytest.mark.parametrize(
    ("url", "environ", "words"),
    [
        ("{root}/data", {"AWS_SECRET_ACCESS_KEY": WRONG}, "the store refused access"),
        ("{root}/data", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "the store refused access"),
        ("s3://no-such-bucket/data", {}, "s3://no-such-bucket/data does not exist"),
    ],
)
def test_a_wrong_request_is_answered_in_one_sentence(
    s3: S3, tmp_path: Path, url: str, environ: dict[str, str], words: str
) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", "check", url.format(root=s3.fresh())],
        env={**os.environ, **environ, "VIT_HOME": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert process.returncode in (1, 2)
    (sentence,) = process.stderr.splitlines()
    assert sentence.startswith("vit: ") and words in sentence
    assert "unexpected" not in sentence
    assert WRONG not in sentence and SECRET not in sentence


def test_a_store_that_goes_away_ends_the_work_in_one_sentence(
    remote: Dataset, s3: S3, monkeypatch: pytest.MonkeyPatch, blunt: None
) -> None:
    monkeypatch.setattr(retry, "_TRIES", 2)
    dataset = Dataset.open(remote.ref)
    with TrainLoader(dataset, DATA, batch_size=BATCH, seed=1, threads=2) as loader:
        next(loader)
        with s3.proxy.faults(rate=1.0), pytest.raises(WorkError, match=r": s3://.* could not be read in 2 tries: "):
            list(itertools.islice(loader, 50))
    for fault in s3.proxy.FAULTS:
        monkeypatch.setattr(s3.proxy, "FAULTS", (fault,))
        with s3.proxy.faults(rate=1.0), pytest.raises(OSError, match="could not be read in 2 tries: "):
            Dataset.open(remote.ref)


# Secrets


def test_credentials_appear_nowhere(
    corpus: Path,
    s3: S3,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    anew: Callable[[], None],
) -> None:
    caplog.set_level(logging.DEBUG)
    url = s3.fresh()
    ref = ingest(str(corpus / "val"), url, CONFIG)
    check(ref)
    said = [text(path, storage.read(storage.join(url, path))) for path, *_ in storage.walk(url)]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WRONG)
    anew()
    for fails in (Dataset.open, check, lambda url: ingest(str(corpus / "val"), url, CONFIG)):
        with pytest.raises(Exception, match="refused access") as failure:
            fails(url)
        said += ["".join(traceback.format_exception(failure.value)), repr(failure.value)]
    said += [*capfd.readouterr()]
    # A client's own account of its requests, which nobody sees who does not ask for it, must name the key.
    ours = [record for record in caplog.records if record.levelno >= logging.INFO or record.name.startswith("vitcore")]
    said += [logging.Formatter().format(record) for record in ours]
    assert not [one for one in said if KEY in one]
    said += [logging.Formatter().format(record) for record in caplog.records]
    assert not [one for one in said if SECRET in one or WRONG in one]


def text(path: str, data: bytes) -> str:
    """What a file says, unpacked."""
    if path.endswith(".parquet"):
        return repr(pq.read_table(pa.BufferReader(data)).to_pylist())
    return data.decode("latin-1")
