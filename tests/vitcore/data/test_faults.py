"""Disks that are full, tars that are cut short, bits that flip: what is whole stays so, what is not is named."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from vitcore.data.dataset.edit import edit
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.ingest.ingest import ingest
from vitcore.data.ingest_config import IngestConfig
from vitcore.data.loading.batch import Batch
from vitcore.data.loading.loader import EvalLoader, TrainLoader
from vitcore.data.reading.decode import BadSampleError
from vitcore.data.reading.reader import Reader
from vitcore.errors import WorkError
from vitcore.recipe import DataConfig

CONFIG = IngestConfig(shard_mb=0.02)
PAGE = 4096
ROOMY = 1 << 23


@dataclass(frozen=True)
class Disk:
    """A disk in memory that is mounted for one process alone; others reach it through that process."""

    process: int
    mounted: Path

    @property
    def path(self) -> Path:
        """Where this process finds it."""
        return Path(f"/proc/{self.process}/root{self.mounted}")

    @property
    def used(self) -> int:
        """Bytes."""
        space = os.statvfs(self.path)
        return (space.f_blocks - space.f_bfree) * space.f_frsize

    def resize(self, size: int) -> None:
        enter = ["nsenter", "--target", str(self.process), "--mount"]
        enter += [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        subprocess.run([*enter, "mount", "-o", f"remount,size={size}", str(self.mounted)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    mounted = tmp_path / "disk"
    mounted.mkdir()
    script = f'mount -t tmpfs -o size={ROOMY} tmpfs "$0" && echo ready && exec sleep 600'
    apart = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    command = [*apart, "sh", "-c", script, str(mounted)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        if process.stdout.readline() != "ready\n":
            pytest.skip(f"needs the right to mount: {process.stderr.read().strip()}")
        yield Disk(process.pid, mounted)
        process.kill()


def photograph(seed: int) -> bytes:
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8))
    buffer = io.BytesIO()
    coarse.resize((40, 32), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def photographs(root: Path, *seeds: int) -> Path:
    for seed in seeds:
        path = root / "ab"[seed % 2] / f"{seed}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photograph(seed))
    return root


def tars(root: Path, *seeds: int) -> Path:
    root.mkdir(exist_ok=True)
    for first in seeds[::8]:
        with tarfile.open(root / f"{first:05d}.tar", "w") as tar:
            for seed in range(first, first + 8):
                for extension, data in (("jpg", photograph(seed)), ("cls", str(seed % 2).encode())):
                    member = tarfile.TarInfo(f"{seed:06d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return root


def read_all(dataset: Dataset) -> int:
    """Read every sample and compare its hash; how many there are."""
    for split, info in dataset.manifest.splits.items():
        with Reader(dataset, split, verify="all") as reader:
            assert len([reader.read(row) for row in range(len(reader.index))]) == info.samples
    return sum(info.samples for info in dataset.manifest.splits.values())


@pytest.mark.parametrize("fill", [photographs, tars])
def test_a_disk_that_is_full_at_any_instant(fill: Callable[..., Path], disk: Disk, tmp_path: Path) -> None:
    source, url = fill(tmp_path / "raw", *range(16)), str(disk.path / "out")
    undisturbed = str(tmp_path / "undisturbed")
    first, _ = (ingest(str(source), place, CONFIG) for place in (url, undisturbed))
    fill(source, *range(16, 64))
    expected = ingest(str(source), undisturbed, CONFIG).digest
    failures, done = 0, None
    while done is None:
        disk.resize(disk.used + PAGE * (1 + failures // 4))
        try:
            done = ingest(str(source), url, CONFIG)
        except WorkError as error:
            failures += 1
            assert "No space left on device" in str(error)
            assert "\n" not in str(error)
            assert Dataset.open(url).ref == first, "the version before is the current one"
            assert read_all(Dataset.open(first)) == 16
            assert not list(disk.path.rglob(".*")), "a disk that is full is not filled with what was not finished"
    assert failures > 3
    disk.resize(ROOMY)
    assert done.digest == expected
    assert read_all(Dataset.open(url)) == 64
    assert read_all(Dataset.open(first)) == 16


def test_an_edit_on_a_full_disk(disk: Disk, tmp_path: Path) -> None:
    first = ingest(str(photographs(tmp_path / "raw", *range(16))), str(disk.path / "out"), CONFIG)
    (tmp_path / "withdrawn.csv").write_text("source\na/2.jpg\n")
    disk.resize(disk.used)
    for delete in (True, False):
        table = tmp_path / f"{delete}.csv"
        table.write_text("source,label\na/2.jpg,b\n")
        with pytest.raises(WorkError, match="No space left on device"):
            edit(first, str(table), delete=delete)
    assert Dataset.open(first.url).ref == first
    disk.resize(ROOMY)
    assert read_all(Dataset.open(edit(first, str(tmp_path / "withdrawn.csv"), delete=True))) == 15


def shown(dataset: Dataset) -> list[tuple[int, set[str]]]:
    """What evaluation and one epoch of training show: how many samples, and the keys of those that were skipped."""
    keys, total = dataset.index("train").keys, dataset.split("train").samples
    data = DataConfig(image_size=32, lanes=1, window=8)
    evaluation = EvalLoader(dataset, "train", image_size=32, batch_size=16)
    with evaluation, TrainLoader(dataset, data, batch_size=4, seed=3) as training:
        assert total % 4 == 0, "an epoch of the one lane is a whole number of steps"
        return [
            account(evaluation, keys, total),
            account(itertools.islice(training, total // 4), keys, total),
        ]


def account(batches: Iterator[Batch] | EvalLoader, keys: np.ndarray, total: int) -> tuple[int, set[str]]:
    """Compare what was shown with what was skipped: every sample is one of them, once."""
    good: list[str] = []
    bad: list[str] = []
    for batch in batches:
        used = batch.samples_S >= 0
        weights = batch.weights_S[used]
        assert set(weights.tolist()) <= {0.0, 1.0}
        found = keys[batch.samples_S[used].numpy()]
        good += found[weights.numpy() == 1].tolist()
        assert sorted(found[weights.numpy() == 0].tolist()) == sorted(batch.bad)
        assert not batch.images_SCHW[used][weights == 0].any(), "nothing of a sample that is not whole is shown"
        bad += batch.bad
    assert len(good) + len(bad) == total
    assert set(good).isdisjoint(bad)
    assert len({*good, *bad}) == total
    return len(good), set(bad)


@pytest.fixture
def copy(toy: Dataset, tmp_path: Path) -> Dataset:
    return Dataset.open(str(shutil.copytree(toy.url, tmp_path / "copy")))


def bytes_of(dataset: Dataset) -> list[tuple[Path, int, int, str]]:
    """Of each training sample: its tar, where its image begins and ends there, its key."""
    index, listed = dataset.index("train"), dataset.shards("train")
    shards = [Path(dataset.shard_url(listed[int(number)])) for number in index.shard_of]
    ends = index.offsets + index.sizes
    return list(zip(shards, index.offsets.tolist(), ends.tolist(), map(str, index.keys), strict=True))


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x10]))


@pytest.fixture
def flipped(copy: Dataset) -> set[str]:
    """Keys of samples of `copy` with a flipped bit: some in the header of the JPEG, most in what is compressed."""
    places = bytes_of(copy)[::7]
    for number, (path, start, end, _) in enumerate(places):
        flip(path, start + 1 if number < 3 else (start + end) // 2)
    return {key for *_, key in places}


def test_cut_tars(copy: Dataset) -> None:
    cut, gone = (Path(copy.shard_url(shard)) for shard in copy.shards("train")[1:3])
    os.truncate(cut, cut.stat().st_size // 2 + 100)
    os.truncate(gone, 0)
    lost = {key for path, _, end, key in bytes_of(copy) if path in (cut, gone) and end > path.stat().st_size}
    assert 0 < len(lost) < 92
    assert shown(copy) == [(92 - len(lost), lost)] * 2


def test_bits_flipped_outside_the_images_change_nothing(copy: Dataset) -> None:
    for path, start, _, _ in bytes_of(copy):
        flip(path, start - 512)  # the first letter of the member's name
        flip(path, start - 512 + 130)  # its size
    assert shown(copy) == [(92, set())] * 2


def test_bits_flipped_on_a_local_disk_are_found_by_decoding_or_where_hashes_are_asked_for(
    copy: Dataset, flipped: set[str]
) -> None:
    for good, bad in shown(copy):
        assert good == 92 - len(bad)
        assert len(bad) >= 3, "without its first marker a JPEG is none"
        assert bad <= flipped, "others are shown as they decode"
    with Reader(copy, "train", verify="all") as reader:
        for row, key in enumerate(reader.index.keys):
            if key not in flipped:
                assert reader.read(row)
                continue
            with pytest.raises(BadSampleError, match="not those that were indexed"):
                reader.read(row)


def test_bits_flipped_in_a_store_are_always_found(copy: Dataset, flipped: set[str]) -> None:
    store = fsspec.filesystem("memory")
    store.put(f"{copy.url}/", "/faults", recursive=True)
    try:
        assert shown(Dataset.open("memory://faults")) == [(92 - len(flipped), flipped)] * 2
    finally:
        store.rm("/faults", recursive=True)
