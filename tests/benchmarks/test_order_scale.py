"""Order, resume and reading of 5.8 billion samples in 580,000 shards: what a rank needs of memory and time.

The shard list is real and has as many rows; its shards are all the same file, which a rank cannot know.
"""

from __future__ import annotations

import hashlib
import io
import json
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vitcore.data.dataset.index import SCHEMA, encode
from vitcore.data.dataset.manifest import FOLDER, Manifest, SplitInfo

SHARDS, SAMPLES, BYTES = 580_000, 10_000, 200
LANES, LANE_SIZE, WORLD, WINDOW = 1024, 8, 64, 1024
STEPS = (0, 17, 3_000_000, 91_234_567)
MOST_MB, MOST_MS = 500, 10.0
VERSION = "0" * 16

RANK = """
import gc, json, resource, sys, time
from pathlib import Path

url, rank, shards, samples = sys.argv[1], *map(int, sys.argv[2:5])
lanes_, size, world, window = map(int, sys.argv[5:9])
steps = list(map(int, sys.argv[9:]))

def resident():
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1000

from vitcore.data.reading.ahead import LookAhead
from vitcore.data.dataset.manifest import Dataset, Manifest
from vitcore.data.loading.order import LaneOrder, rank_lanes
from vitcore.data.reading.reader import Reader

imported = resident()
dataset = Dataset(url, "0" * 16, Manifest.model_validate_json(Path(url, "about.json").read_text()))
began = time.perf_counter()
sizes = dataset.shard_list("train").samples
reader = Reader(dataset, "train")
opened, listed = time.perf_counter() - began, resident()

lanes = rank_lanes(rank, world, lanes_)
order_ms, ahead_ms, batch_ms = [], [], []
for step in steps * 5:
    order = LaneOrder(sizes, lanes=lanes_, window=window, seed=0)
    began = time.perf_counter()
    for lane in lanes:
        order.run(lane, step * size, step * size + size)
    order_ms.append(1e3 * (time.perf_counter() - began))
    order = LaneOrder(sizes, lanes=lanes_, window=window, seed=0)
    look = LookAhead(order, reader, uses=1)
    began = time.perf_counter()
    batch = [(row, look.advance(lane, step * size + n))
             for lane in lanes
             for n, row in enumerate(order.run(lane, step * size, step * size + size)[1].tolist())]
    ahead_ms.append(1e3 * (time.perf_counter() - began))
    for row, span in batch:
        reader.read(row, span)
    batch_ms.append(1e3 * (time.perf_counter() - began))
for step in range(steps[-1], steps[-1] + 300):
    for lane in lanes:
        for n, row in enumerate(order.run(lane, step * size, step * size + size)[1].tolist()):
            reader.read(row, look.advance(lane, step * size + n))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
print(json.dumps({"imported": imported, "listed": listed - imported, "read": resident() - imported,
                  "peak": peak - imported, "opened": opened,
                  "order": order_ms, "ahead": ahead_ms, "batch": batch_ms}))
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("scale"), np.random.default_rng(0)
    rows = []
    with tarfile.open(folder / "0.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(SAMPLES):
            data, member = rng.bytes(BYTES), tarfile.TarInfo(f"{number:016d}.jpg")
            member.size = BYTES
            row = {"key": member.name[:-4], "offset": tar.offset + tarfile.BLOCKSIZE, "size": BYTES, "label": 1}
            rows.append(row | {"hash": hashlib.sha256(data).digest(), "source": f"class/{number:08d}.jpg"})
            tar.addfile(member, io.BytesIO(data))
    (folder / "0.index.parquet").write_bytes(encode(pa.Table.from_pylist(rows, schema=SCHEMA)))
    checksums = rng.bytes(32 * SHARDS).hex()
    listed = {
        "name": ["0.tar"] * SHARDS,
        "samples": np.full(SHARDS, SAMPLES),
        "bytes": np.full(SHARDS, (folder / "0.tar").stat().st_size),
        "checksum": [checksums[64 * number : 64 * number + 64] for number in range(SHARDS)],
        "index": ["0.index.parquet"] * SHARDS,
        "index_digest": [checksums[64 * number : 64 * number + 64] for number in range(SHARDS)],
    }
    (folder / FOLDER).mkdir()
    pq.write_table(pa.table(listed), folder / FOLDER / f"{VERSION}.train.parquet", compression="zstd")
    split = SplitInfo(samples=SHARDS * SAMPLES, shards=SHARDS, bytes=0)
    about = Manifest(
        fields=("image",), splits={"train": split}, mean=(0, 0, 0), std=(1, 1, 1), source="noise", settings={}
    )
    (folder / "about.json").write_text(about.model_dump_json())
    return folder


@pytest.mark.parametrize("rank", [0, 50])
def test_a_rank_of_an_internet_scale_run(url: Path, rank: int, report: Callable[[str], None]) -> None:
    numbers = (rank, SHARDS, SAMPLES, LANES, LANE_SIZE, WORLD, WINDOW, *STEPS)
    command = [sys.executable, "-c", RANK, str(url), *map(str, numbers)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    figures = json.loads(answer.stdout)
    cold = {name: min(figures[name]) for name in ("order", "ahead", "batch")}
    spread = {
        name: f"{least:.1f} ms (median {statistics.median(figures[name]):.1f}, most {max(figures[name]):.1f})"
        for name, least in cold.items()
    }
    report(
        f"rank {rank} of {WORLD}, {SHARDS * SAMPLES:,} samples: {figures['read']:.0f} MB above the "
        f"{figures['imported']:.0f} of the imports after 300 steps, {figures['listed']:.0f} when opened, "
        f"peak {figures['peak']:.0f}; opening {figures['opened']:.1f} s; cold at steps {STEPS}: "
        f"order {spread['order']}, with look-ahead {spread['ahead']}, "
        f"bytes of a batch of {LANES // WORLD * LANE_SIZE} {spread['batch']}"
    )
    assert figures["read"] <= MOST_MB
    assert cold["order"] <= MOST_MS
    assert cold["ahead"] <= MOST_MS
