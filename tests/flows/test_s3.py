"""Photographs become a dataset in a bucket, the dataset a model: Ray workers, Prefect, MLflow and a real S3 server."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pytest
import ray
from mlflow.tracking import MlflowClient
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

from flows.ingest import ingest
from flows.pretrain import pretrain
from tasks.on_mlflow.registry import ModelVersion
from tasks.settings import Settings
from tests.s3 import KEY, S3, SECRET
from vitcore.data.dataset.manifest import Dataset, DatasetRef
from vitcore.data.ingest_config import IngestConfig, SplitFractions
from vitcore.data.maintenance.check import check
from vitcore.recipe import Compute

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

CONFIG = IngestConfig(shard_mb=0.02, splits=SplitFractions(train=0.6, val=0.2, test=0.2))
TINY: dict[str, Any] = {
    "data.image_size": 32,
    "model.patch": 8,
    "model.width": 32,
    "model.depth": 2,
    "model.heads": 2,
    "train.batch_size": 16,
    "train.duration": "6 steps",
    "eval.every": "3 steps",
    "eval.resize": 32,
}
WRONG = "wrong-secret-never-to-be-seen"


@dataclass
class Story:
    """What the way through the bucket gave, and everything that was said on it."""

    data: DatasetRef
    version: ModelVersion
    read: dict[str, int]
    """Bytes that the training fetched, by object."""
    refused: str
    """What a flow with a wrong secret ended with."""
    records: list[logging.LogRecord] = field(repr=False)


class Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    listener = Listener()
    logging.getLogger().addHandler(listener)
    yield listener
    logging.getLogger().removeHandler(listener)


@pytest.fixture(scope="module")
def story(house: Settings, photographs: Path, s3: S3, listener: Listener) -> Story:
    data = ingest(str(photographs), s3.fresh(), CONFIG)
    s3.proxy.reset()
    version = pretrain("vit_tiny_cpu", data.url, TINY, Compute(workers=2, loader_workers=1, threads=1))
    read = dict(s3.requests.served)
    client = fsspec.get_filesystem_class("s3")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PermissionError) as failure:
        patch.setenv("AWS_SECRET_ACCESS_KEY", WRONG)
        client.clear_instance_cache()
        ingest(str(photographs), s3.fresh(), CONFIG)
    client.clear_instance_cache()
    refused = "".join(traceback.format_exception(failure.value))
    return Story(data, version, read, refused, listener.records)


def test_the_dataset_is_whole_and_the_model_registered(house: Settings, story: Story) -> None:
    dataset = Dataset.open(story.data)
    assert sum(info.samples for info in dataset.manifest.splits.values()) == 120
    assert len(dataset.shards("train")) > 8, "enough for the cluster to have written them"
    assert check(story.data, "full") == []
    assert story.version.tags["vit.dataset"] == story.data.digest
    client = MlflowClient(house.tracking_uri)
    assert client.get_run(story.version.run_id).info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(story.version.run_id, "train/loss")]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_the_workers_read_from_the_bucket(story: Story) -> None:
    dataset = Dataset.open(story.data)
    for split in ("train", "val"):
        names = {shard.name for shard in dataset.shards(split)}
        fetched = [size for path, size in story.read.items() if path.split("/", 2)[2] in names]
        assert len(fetched) > len(names) // 2, split


def test_a_wrong_secret_ends_a_flow_in_one_sentence(story: Story) -> None:
    assert (
        story.refused.rstrip()
        .splitlines()[-1]
        .endswith("the store refused access (Forbidden); check its credentials in the environment")
    )


def test_credentials_appear_nowhere(house: Settings, story: Story) -> None:
    """Neither in what MLflow and Prefect keep, nor in Ray's session, nor in anybody's logs."""
    said = {"exception": story.refused.encode(), "model version": repr(story.version).encode()}
    said |= {"prefect": "\n".join(_prefect_logs()).encode()}
    said |= {f"log {number}": _shown(record) for number, record in enumerate(story.records)}
    folders = [house.home, Path(ray._private.worker._global_node.get_session_dir_path())]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    files += _prefect_database()
    said |= {str(path): path.read_bytes() for path in files}
    kept = b"".join(said.values())
    for known in (story.data.digest, story.version.run_id):
        assert kept.count(known.encode()) > 3, "what is searched is what there is"
    for secret in (SECRET, WRONG, KEY):
        assert not [name for name, data in said.items() if secret.encode() in data], secret


def _shown(record: logging.LogRecord) -> bytes:
    """A record as whoever logs sees it; the S3 client's own account of its requests must name the key."""
    if record.levelno < logging.INFO and record.name.startswith(("botocore", "aiobotocore", "s3fs", "fsspec")):
        return logging.Formatter().format(record).replace(KEY, "").encode()
    return logging.Formatter().format(record).encode()


def _prefect_database() -> list[Path]:
    """Where the harness's server keeps runs, parameters and logs."""
    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    path = Path(str(getattr(url, "get_secret_value", lambda: url)()).split("///", 1)[1])
    return sorted(path.parent.glob(f"{path.name}*"))


def _prefect_logs() -> list[str]:
    with get_client(sync_client=True) as client:
        return [log.message for log in client.read_logs(limit=200)]
