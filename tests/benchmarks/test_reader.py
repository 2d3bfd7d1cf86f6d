"""Reading local shards, from end to end and sample by sample, against webdataset's reader and against a raw read."""

from __future__ import annotations

import hashlib
import io
import os
import random
import statistics
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from vitcore.data.dataset.index import SCHEMA, encode
from vitcore.data.dataset.manifest import FOLDER, Dataset, Manifest, SplitInfo
from vitcore.data.dataset.shard import Shard
from vitcore.data.reading.reader import Reader

SHARDS, ROUNDS = 4, 25
BUFFER = 1 << 20
"""Bytes of a raw read: the size that was fastest here."""
OVER_WEBDATASET, OF_RAW = 5.0, 0.8
VERSION = "0" * 16


def photographs() -> list[bytes]:
    """Those the environment names, or noise of their size."""
    folder = os.environ.get("VIT_TEST_DATA")
    if folder is None:
        rng = np.random.default_rng(0)
        return [rng.bytes(int(size)) for size in rng.integers(50_000, 160_000, 250)]
    with tarfile.open(Path(folder) / "photos.tar") as tar:
        return [tar.extractfile(member).read() for member in tar if member.isfile()]  # type: ignore[union-attr]


def write_shard(path: Path, photos: list[bytes]) -> Shard:
    rows = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, photo in enumerate(photos):
            members = {"jpg": photo, "cls": b"7", "json": b'{"width": 500, "height": 375}'}
            for extension, data in members.items():
                member = tarfile.TarInfo(f"{path.stem}{number:06d}.{extension}")
                member.size = len(data)
                if extension == "jpg":
                    rows.append({"offset": tar.offset + tarfile.BLOCKSIZE, "size": len(data), "label": 7})
                    rows[-1] |= {"key": member.name[:-4], "hash": hashlib.sha256(data).digest()}
                tar.addfile(member, io.BytesIO(data))
    index = path.with_suffix(".index.parquet")
    index.write_bytes(encode(pa.Table.from_pylist(rows, schema=SCHEMA)))
    names = {"name": path.name, "index": index.name}
    return Shard(samples=len(rows), bytes=path.stat().st_size, checksum="", index_digest="", **names)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Shards of the same photographs in different orders, larger together than a processor's caches."""
    folder, photos = tmp_path_factory.mktemp("reader"), photographs()
    shuffle = random.Random(0)
    shards = [
        write_shard(folder / f"{number:05d}.tar", shuffle.sample(photos, len(photos))) for number in range(SHARDS)
    ]
    (folder / FOLDER).mkdir()
    pq.write_table(
        pa.Table.from_pylist([shard.model_dump() for shard in shards]), folder / FOLDER / f"{VERSION}.train.parquet"
    )
    split = SplitInfo(samples=SHARDS * len(photos), shards=SHARDS, bytes=sum(shard.bytes for shard in shards))
    about = Manifest(
        fields=("image",), splits={"train": split}, mean=(0, 0, 0), std=(1, 1, 1), source="photographs", settings={}
    )
    return Dataset(str(folder), VERSION, about)


def raw_read(dataset: Dataset) -> None:
    buffer = bytearray(BUFFER)
    for shard in dataset.shards("train"):
        with Path(dataset.shard_url(shard)).open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def positional_reads(dataset: Dataset, places: list[tuple[int, int, int]]) -> None:
    """What no reader of single samples can beat: nothing but the calls."""
    files = [os.open(dataset.shard_url(shard), os.O_RDONLY) for shard in dataset.shards("train")]
    for file, offset, size in places:
        os.pread(files[file], size, offset)
    for file in files:
        os.close(file)


def through_webdataset(dataset: Dataset) -> int:
    urls = [dataset.shard_url(shard) for shard in dataset.shards("train")]
    return sum(len(sample["jpg"]) for sample in wds.WebDataset(urls, shardshuffle=False))


def test_reading_local_shards(dataset: Dataset, report: Callable[[str], None]) -> None:
    with Reader(dataset, "train") as reader:
        index = reader.index
        order = random.Random(1).sample(range(len(index)), len(index))
        places = [(int(index.shard_of[n]), int(index.offsets[n]), int(index.sizes[n])) for n in order]
        total = int(index.sizes.sum())
        ways: dict[str, Callable[[], object]] = {
            "raw": lambda: raw_read(dataset),
            "scan": lambda: sum(len(data) for _, data in reader.scan()),
            "preads": lambda: positional_reads(dataset, places),
            "indexed": lambda: sum(len(reader.read(sample)) for sample in order),
            "webdataset": lambda: through_webdataset(dataset),
        }
        assert ways["scan"]() == ways["indexed"]() == ways["webdataset"]() == total
        times: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(ROUNDS):
            for way in list(ways)[:: 1 if number % 2 else -1]:
                began = time.perf_counter()
                ways[way]()
                times[way].append(time.perf_counter() - began)
    best = {way: min(took) for way, took in times.items()}
    for way, took in times.items():
        low, middle, high = statistics.quantiles(took, n=4)
        report(
            f"{way}: {total / best[way] / 1e9:.2f} GB/s at best (of {ROUNDS}; quartiles "
            f"{total / high / 1e9:.2f}, {total / middle / 1e9:.2f}, {total / low / 1e9:.2f}), "
            f"{best['webdataset'] / best[way]:.1f} × webdataset, {best['raw'] / best[way]:.0%} of raw, "
            f"{1e6 * best[way] / len(order):.1f} µs a sample"
        )
    for way in ("scan", "indexed"):
        assert best["webdataset"] / best[way] >= OVER_WEBDATASET
    assert best["raw"] / best["scan"] >= OF_RAW
    assert best["preads"] / best["indexed"] >= OF_RAW
