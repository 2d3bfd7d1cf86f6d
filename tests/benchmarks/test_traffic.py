"""What a node fetches from S3 in an epoch: its share of the dataset and little else, however many nodes there are.

The nodes are Ray nodes on this machine, each with an S3 proxy of its own that counts.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import ray
from PIL import Image
from ray.cluster_utils import Cluster

from tests.s3 import S3, Proxy
from vitcore.data.dataset.manifest import Dataset, DatasetRef
from vitcore.data.ingest.ingest import ingest
from vitcore.data.ingest_config import IngestConfig, SplitFractions
from vitcore.recipe import DataConfig

PHOTOGRAPHS, EPOCHS = 2000, 3
BATCH, DATA = 32, DataConfig(image_size=32, lanes=8, window=16)
"""A lane has 250 photographs; at the end at most two windows more are there, 4 % of what it showed."""
MORE = 0.1
"""Bytes over the share of a node that are allowed: version, index, headers, and what is fetched ahead."""


@pytest.fixture(scope="module")
def dataset(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Noise of about 15 kB a photograph, in shards of 2 MB."""
    raw, rng = tmp_path_factory.mktemp("raw"), np.random.default_rng(0)
    for number in range(PHOTOGRAPHS):
        noise = rng.integers(0, 256, (128, 128, 3), np.uint8)
        Image.fromarray(noise).save(raw / f"{number:04d}.jpg", quality=85)
    config = IngestConfig(shard_mb=2, splits=SplitFractions(train=1, val=0, test=0))
    return Dataset.open(ingest(str(raw), s3.fresh(), config))


@contextmanager
def ray_nodes(proxies: list[Proxy]) -> Iterator[None]:
    """A Ray node for each proxy, whose processes find S3 there."""
    with ExitStack() as stack:
        folder = tempfile.mkdtemp(prefix="vit-", dir="/tmp")  # sockets need a short path
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("RAY_TMPDIR", folder)
        cluster = Cluster()
        stack.callback(cluster.shutdown)
        for number, proxy in enumerate(proxies):
            endpoint = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}
            cluster.add_node(num_cpus=1, resources={f"node-{number}": 1}, env_vars=endpoint, include_dashboard=False)
        stack.callback(ray.shutdown)
        ray.init(cluster.address, log_to_driver=False)
        yield


def read(ref: DatasetRef, rank: int, size: int, data: DataConfig, batch: int, steps: int) -> dict[str, Any]:
    """Show a rank's part of some steps; what its reader says that cost."""
    import itertools

    from vitcore.data.loading.loader import TrainLoader

    with TrainLoader(Dataset.open(ref), data, batch_size=batch, seed=1, rank=rank, size=size, depth=2) as loader:
        shown = sum(int((step.weights_S > 0).sum()) for step in itertools.islice(loader, steps))
        stats = loader._sources[0].reader.stats
    return {"node": ray.get_runtime_context().get_node_id(), "shown": shown, "direct": stats.direct_reads}


@pytest.mark.parametrize("nodes", [2, 4])
def test_a_node_fetches_its_share(nodes: int, dataset: Dataset, s3: S3, report: Callable[[str], None]) -> None:
    total = dataset.split("train").bytes
    steps = EPOCHS * PHOTOGRAPHS // BATCH
    proxies = [Proxy(urlsplit(s3.direct).port or 0) for _ in range(nodes)]
    try:
        with ray_nodes(proxies):
            reading = ray.remote(num_cpus=1)(read)
            answers = ray.get(
                [
                    reading.options(resources={f"node-{rank}": 1}).remote(dataset.ref, rank, nodes, DATA, BATCH, steps)
                    for rank in range(nodes)
                ],
                timeout=240,
            )
    finally:
        for proxy in proxies:
            proxy.stop()
    assert len({answer["node"] for answer in answers}) == nodes
    assert [answer["shown"] for answer in answers] == [steps * BATCH // nodes] * nodes
    fetched = [sum(proxy.traffic.served.values()) / EPOCHS for proxy in proxies]
    for node, (size, proxy) in enumerate(zip(fetched, proxies, strict=True)):
        requests = sum(proxy.traffic.requests.values()) / EPOCHS
        report(
            f"S3, node {node} of {nodes}: {size / 1e6:.2f} MB in {requests:.0f} requests an epoch, "
            f"{size / total:.1%} of the dataset ({total / 1e6:.1f} MB, {PHOTOGRAPHS} photographs, "
            f"{len(dataset.shards('train'))} shards, {DATA.lanes} lanes, windows of {DATA.window})"
        )
    report(f"S3, {nodes} nodes together: {sum(fetched) / total:.1%} of the dataset an epoch")
    assert sum(answer["direct"] for answer in answers) == 0
    assert max(fetched) <= (1 + MORE) * total / nodes
