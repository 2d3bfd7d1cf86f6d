"""Small real datasets, made by hand: these tests do not depend on how datasets are ingested."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from vitcore.data.dataset.index import SCHEMA, encode, rows_digest
from vitcore.data.dataset.manifest import Dataset, Manifest, SplitInfo, publish
from vitcore.data.dataset.shard import Shard

MakeDataset = Callable[..., Dataset]


def photograph(number: int) -> bytes:
    """A JPEG that is unlike that of any other number."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
    side = (24 + number % 9, 20 + number % 7)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(side, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_shard(root: Path, split: str, number: int, samples: Sequence[tuple[str, bytes, int]]) -> Shard:
    name = f"{split}/{number:05d}.tar"
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, data, label in samples:
            member = tarfile.TarInfo(f"{key}.jpg")
            member.size = len(data)
            offset = tar.offset + tarfile.BLOCKSIZE
            tar.addfile(member, io.BytesIO(data))
            rows.append(
                {"key": key, "offset": offset, "size": len(data), "extension": "jpg", "label": label, "captions": []}
                | {"width": 0, "height": 0, "hash": hashlib.sha256(data).digest(), "phash": 0, "group": key}
                | {"source": key}
            )
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    (path.with_suffix(".index.parquet")).write_bytes(encode(table))
    data = path.read_bytes()
    return Shard(
        name=name,
        samples=len(samples),
        bytes=len(data),
        checksum=hashlib.sha256(data).hexdigest(),
        index=name.replace(".tar", ".index.parquet"),
        index_digest=rows_digest(table),
    )


@pytest.fixture(scope="session")
def make_dataset() -> MakeDataset:
    """Publishes shards of the given sizes; sample n is `photograph(n)`, or `broken[n]`, its label n mod 10."""

    def make(root: Path, sizes: Sequence[int], split: str = "train", broken: dict[int, bytes] | None = None) -> Dataset:
        shards, first = [], 0
        for number, size in enumerate(sizes):
            samples = [(f"{n:06d}", (broken or {}).get(n) or photograph(n), n % 10) for n in range(first, first + size)]
            shards.append(write_shard(root, split, number, samples))
            first += size
        manifest = Manifest(
            fields=("image", "label"),
            classes=tuple("abcdefghij"),
            splits={split: SplitInfo(samples=first, shards=len(shards), bytes=sum(shard.bytes for shard in shards))},
            mean=(0.5, 0.5, 0.5),
            std=(0.2, 0.2, 0.2),
            source="made by hand",
            settings={},
        )
        return Dataset.open(publish(str(root), manifest, {split: shards}))

    return make


@pytest.fixture(scope="session")
def uneven(make_dataset: MakeDataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """203 samples in 7 shards of different sizes, the samples 5 and 77 unreadable."""
    broken = {5: b"no photograph", 77: photograph(77)[:-200]}
    return make_dataset(tmp_path_factory.mktemp("uneven"), [40, 3, 61, 1, 17, 28, 53], broken=broken)
