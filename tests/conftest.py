"""What all tests share: options, real data where there is some, a small learnable dataset, groups of processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import shutil
import uuid
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.s3 import S3, free_ports, serving
from vitcore.data.dataset.manifest import Dataset, DatasetRef
from vitcore.data.ingest.ingest import ingest
from vitcore.data.ingest_config import IngestConfig
from vitcore.recipe import (
    AugmentConfig,
    ClipConfig,
    Compute,
    ContrastConfig,
    DataConfig,
    EvalConfig,
    OptimConfig,
    Recipe,
    TextConfig,
    TrainConfig,
    VitConfig,
)
from vitcore.recipe import apply_overrides as override
from vitcore.train.request import TrainRequest

WORKER = Path(__file__).parent / "worker.py"
MakeRequest = Callable[..., TrainRequest]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmarks", action="store_true", help="run tests/benchmarks, which take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--benchmarks"):
        return
    folder = Path(__file__).parent / "benchmarks"
    for item in items:
        if folder in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="a benchmark: give --benchmarks"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photographs that the environment names."""
    folder = os.environ.get("VIT_TEST_DATA")
    if not folder:
        pytest.skip("needs real photographs: set VIT_TEST_DATA to their folder")
    return Path(folder)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Trainings set the process's thread count: put it back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Ingested photographs of 3 uneven classes that differ in colour: 92 to train on, 47 to validate."""
    root = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(7)
    for split, sizes in {"train": (41, 30, 21), "val": (17, 14, 16)}.items():
        for label, size in enumerate(sizes):
            folder = root / "raw" / split / f"{'rgb'[label]}"
            folder.mkdir(parents=True)
            for number in range(size):
                pixels = rng.integers(0, 160, (5, 5, 3))
                pixels[:, :, label] += 90
                photograph = Image.fromarray(pixels.astype(np.uint8)).resize((40, 36 + number % 5))
                photograph.save(folder / f"{number}.jpg", quality=90)
    dataset = Dataset.open(ingest(str(root / "raw"), str(root / "dataset"), IngestConfig(shard_mb=0.05)))
    assert len(dataset.shards("train")) > 3
    return dataset


ABOVE = {
    "red": (220, 40, 40),
    "blue": (40, 60, 220),
    "green": (40, 170, 60),
    "white": (235, 235, 235),
    "black": (15, 15, 15),
}
BELOW = {
    "yellow": (230, 220, 50),
    "purple": (150, 40, 170),
    "grey": (125, 125, 125),
    "orange": (240, 140, 30),
    "cyan": (40, 220, 220),
}


@pytest.fixture(scope="session")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Ingested photographs of a sky and a field in 25 pairs of colours, with two captions that name both, and the sky
    as the class: 100 to train on, 25 to validate.
    """
    root = tmp_path_factory.mktemp("captioned")
    rng = np.random.default_rng(5)
    rows = ["image,split,label,caption"]
    for sky, above in ABOVE.items():
        for field, below in BELOW.items():
            for number, split in enumerate(["train"] * 4 + ["val"]):
                pixels = np.concatenate([np.full((20, 40, 3), above), np.full((20, 40, 3), below)])
                pixels = (pixels + rng.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8)
                name = f"{sky}-{field}-{number}.jpg"
                (root / "raw").mkdir(exist_ok=True)
                Image.fromarray(pixels).save(root / "raw" / name, quality=90)
                rows += [
                    f"{name},{split},{sky},{text}"
                    for text in (f"{sky} sky over a {field} field", f"A {field} field under {sky}!")
                ]
    (root / "raw" / "captions.csv").write_text("\n".join(rows) + "\n")
    return Dataset.open(ingest(str(root / "raw" / "captions.csv"), str(root / "dataset"), IngestConfig(shard_mb=0.05)))


@pytest.fixture(scope="session")
def pairs(plain: Recipe) -> Recipe:
    """A recipe for `captioned`: a small CLIP, without anything random but the order, the crop and the caption."""
    text = TextConfig(context=16, width=32, depth=2, heads=2)
    return plain.model_copy(
        update={
            "name": "pairs",
            "data": plain.data.model_copy(update={"captions": True, "augment": AugmentConfig(crop_scale=(0.9, 1.0))}),
            "model": ClipConfig(width=32, image=plain.model, text=text),
            "objective": ContrastConfig(),
            "eval": plain.eval.model_copy(update={"metric": "recall_at_10"}),
        }
    )


@pytest.fixture
def spoil(toy: Dataset, tmp_path: Path) -> Callable[..., DatasetRef]:
    """`spoil(split, *samples)`: a copy of `toy` in which the bytes of some samples are overwritten where they lie."""

    def spoil(split: str, *samples: int) -> DatasetRef:
        shutil.copytree(toy.url, tmp_path / "spoilt")
        dataset = Dataset.open(str(tmp_path / "spoilt"))
        index = dataset.index(split)
        for sample in samples:
            shard = dataset.shards(split)[int(index.shard_of[sample])]
            with Path(dataset.shard_url(shard)).open("r+b") as file:
                file.seek(int(index.offsets[sample]))
                file.write(b"x" * int(index.sizes[sample]))
        return dataset.ref

    return spoil


@pytest.fixture(scope="session")
def plain() -> Recipe:
    """A recipe for `toy` without anything random but the order, the crop and the flip."""
    return Recipe(
        name="plain",
        data=DataConfig(image_size=32, lanes=5, window=8, augment=AugmentConfig(crop_scale=(0.5, 1.0))),
        model=VitConfig(patch=8, width=32, depth=2, heads=2),
        # With the usual epsilon Adam makes steps as large as the rate from rounding errors alone, where the true
        # gradient is zero (the bias of attention's keys); worlds of different size then differ by more than rounding.
        optim=OptimConfig(lr=3e-3, warmup="2 steps", eps=1e-4),
        train=TrainConfig(duration="8 steps", batch_size=20, seed=3),
        eval=EvalConfig(every="4 steps", batch_size=16),
    )


@pytest.fixture(scope="session")
def lively(plain: Recipe) -> Recipe:
    """`plain` with everything random: dropout, stochastic depth, Mixup, CutMix, RandAugment, erasing; and averaging."""
    return override(
        plain,
        {
            "data.augment.randaug_layers": 2,
            "data.augment.erasing": 0.3,
            "data.augment.mixup": 0.8,
            "data.augment.cutmix": 1.0,
            "model.dropout": 0.1,
            "model.drop_path": 0.2,
            "objective.label_smoothing": 0.1,
            "train.ema_decay": 0.9,
        },
    )


@pytest.fixture
def make_request(toy: Dataset, tmp_path: Path) -> MakeRequest:
    """`make_request(recipe, folder="run", overrides, **compute)`: a training of `toy` into the test's own folder."""

    def make(
        recipe: Recipe, folder: str = "run", overrides: dict[str, Any] | None = None, **compute: Any
    ) -> TrainRequest:
        how = {"threads": 1, "precision": "fp32", "loader_workers": 1, "checkpoint_every": "1 steps", "keep": 100}
        return TrainRequest(
            recipe=override(recipe, overrides or {}),
            compute=Compute(**how | compute),
            data=toy.ref,
            checkpoints=str(tmp_path / folder),
            identity="train-toy",
        )

    return make


class Processes:
    """Python processes that have imported vitcore already: each is forked from a server that does nothing else."""

    def __init__(self, logs: Path) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["pytest", "vitcore.train.__main__", "vitcore.data.ingest.ingest", "open_clip.tokenizer"]
        )
        self._logs = logs

    def start(self, job: dict[str, Any], **environ: str) -> BaseProcess:
        """Start `worker.py` with a job; what it prints goes to the file in its attribute `log`."""
        log = self._logs / uuid.uuid4().hex
        job = {**job, "log": str(log), "environ": environ}
        process = self._context.Process(
            target=runpy.run_path, args=(str(WORKER), {"JOB": json.dumps(job)}), daemon=True
        )
        process.start()
        process.log = log  # type: ignore[attr-defined]
        return process

    def ranks(self, size: int, job: dict[str, Any]) -> tuple[list[BaseProcess], list[Path]]:
        """Start a job on a gloo group of `size` ranks; the processes, and where each will write its answer."""
        (port,) = free_ports(1)
        answers = [self._logs / uuid.uuid4().hex for _ in range(size)]
        started = [
            self.start(
                {**job, "answer": str(answers[rank])},
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(size),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )
            for rank in range(size)
        ]
        return started, answers

    def group(self, size: int, job: dict[str, Any], *, timeout: float = 120) -> list[Any]:
        """Run a job on a gloo group of `size` ranks; what each answers."""
        ranks, answers = self.ranks(size, job)
        for rank in ranks:
            rank.join(timeout)
        stuck = [rank for rank in ranks if rank.exitcode is None]
        for rank in stuck:
            rank.kill()
        said = [rank.log.read_text() for rank in ranks]  # type: ignore[attr-defined]
        assert not stuck, said
        assert [rank.exitcode for rank in ranks] == [0] * size, said
        return [json.loads(answer.read_text()) for answer in answers]


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Processes:
    """Starts processes, alone or as gloo groups."""
    return Processes(tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3 server for the whole run, which the standard environment of this process names from now on."""
    with serving(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as environment:
        for name, value in server.env.items():
            environment.setenv(name, value)
        yield server


@pytest.fixture
def flaky_s3(s3: S3) -> Iterator[S3]:
    """The server while a tenth of the requests fail: 503, or a connection reset before, after or amid the answer."""
    with s3.proxy.faults(rate=0.1):
        yield s3
