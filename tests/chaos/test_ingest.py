"""SIGKILL of an ingest, again and again, then the same call until it is done; and two ingests into one URL at once."""

from __future__ import annotations

import io
import json
import multiprocessing
import random
import shutil
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitcore.data.dataset.manifest import Dataset, DatasetRef
from vitcore.data.ingest.ingest import ingest
from vitcore.data.ingest.parallel import threads
from vitcore.data.ingest_config import IngestConfig, SplitFractions
from vitcore.data.maintenance.garbage import find_garbage, remove
from vitcore.data.reading.reader import Reader
from vitcore.errors import RequestError, WorkError

KILLS = 4
MANY_KILLS = 50
"""With --benchmarks, in each scenario."""
ROUNDS = 3
CONFIG = IngestConfig(shard_mb=0.03, splits=SplitFractions(train=0.6, val=0.2, test=0.2))
WRITTEN = ("_vit/ledger/*", "*/.shard-*", "*/*.tar", "*/*.index.parquet", "*/*_stats.json")
ADOPTED = ("_vit/adopt/.shard-*", "_vit/adopt/*.parquet", "_vit/adopt/*.json", "_vit/index/*")
PUBLISHED = (
    *("_vit/*.parquet", "_vit/.*.tmp", "_vit/????????????????.json", "_vit/identities/*"),
    *(".dataset.json.lock", ".dataset.json.*.tmp", "dataset.json"),
)
"""What appears in the course of an ingest, roughly in this order."""


@dataclass(frozen=True)
class Attempt:
    """An ingest in a process of its own."""

    process: BaseProcess
    answer: Path
    """Where it writes what came of it."""

    def outcome(self) -> dict[str, str]:
        """Wait for the end; the digest that was published, or the error."""
        self.process.join(60)
        assert self.process.exitcode == 0
        said: dict[str, str] = json.loads(self.answer.read_text())
        return said


Start = Callable[..., Attempt]


@pytest.fixture
def start(processes: Any, tmp_path: Path) -> Iterator[Start]:
    """`start(source, url, go=None)`: an ingest that begins at once, or as soon as there is a file `go`."""
    assert processes, "they have told the server, which is shared, what to import before it forks"
    context = multiprocessing.get_context("forkserver")
    (tmp_path / "scratch").mkdir()
    started: list[BaseProcess] = []

    def begin(source: Path, url: Path, go: Path | None = None) -> Attempt:
        answer = tmp_path / uuid.uuid4().hex
        job = {"source": str(source), "url": str(url), "answer": str(answer), "scratch": str(tmp_path / "scratch")}
        told = {"JOB": json.dumps(job | ({"go": str(go)} if go else {}))}
        process = context.Process(target=run_path, args=(__file__, told), daemon=True)
        process.start()
        started.append(process)
        return Attempt(process, answer)

    yield begin
    for process in started:
        process.kill()


def work(job: dict[str, str]) -> None:
    """What the process does."""
    tempfile.tempdir = job["scratch"]
    while "go" in job and not Path(job["go"]).exists():
        time.sleep(0.0002)
    try:
        said = {"digest": ingest(job["source"], job["url"], CONFIG, mapper=threads(2)).digest}
    except (RequestError, WorkError) as error:
        said = {"error": f"{type(error).__name__}: {error}"}
    Path(job["answer"]).write_text(json.dumps(said))


def photograph(seed: int) -> bytes:
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8))
    buffer = io.BytesIO()
    coarse.resize((40, 32), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def fill(root: Path, classes: str, *seeds: int) -> Path:
    """A folder of photographs in classes."""
    for place, seed in enumerate(seeds):
        path = root / classes[place % len(classes)] / f"{seed}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photograph(seed))
    return root


def fill_tars(root: Path) -> Path:
    """Tars as others write them."""
    root.mkdir()
    for shard in range(8):
        with tarfile.open(root / f"{shard:05d}.tar", "w") as tar:
            for seed in range(8 * shard, 8 * shard + 8):
                for extension, data in (("jpg", photograph(seed)), ("cls", str(seed % 3).encode())):
                    member = tarfile.TarInfo(f"{seed:06d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return root


def change(corpus: Path) -> None:
    """What a night brings: new photographs, some relabelled, some gone."""
    fill(corpus, "ab", *range(100, 112))
    for seed in (0, 6, 12):
        (corpus / "a" / f"{seed}.jpg").rename(corpus / "b" / f"{seed}.jpg")
    for seed in (1, 7):
        (corpus / "b" / f"{seed}.jpg").unlink()


def published(url: Path) -> dict[str, bytes]:
    """All files but the ledger, which is a convenience, and what is hidden."""
    found = {path.relative_to(url): path for path in url.rglob("*") if path.is_file()}
    return {
        str(name): path.read_bytes()
        for name, path in found.items()
        if not str(name).startswith("_vit/ledger/") and not any(part.startswith(".") for part in name.parts)
    }


def read_all(dataset: Dataset) -> None:
    """Every sample of every split is there, with the bytes that were indexed."""
    for split, info in dataset.manifest.splits.items():
        with Reader(dataset, split, verify="all") as reader:
            assert len(reader.index) == info.samples > 0
            for row in range(info.samples):
                assert reader.read(row)


def check(url: Path, before: str | None, after: str) -> None:
    """What the killed ingest left is a whole version or, if there was none before, no dataset."""
    try:
        dataset = Dataset.open(str(url))
    except RequestError as error:
        assert before is None and ("holds no dataset" in str(error) or "does not exist" in str(error))
        return
    assert dataset.digest in (before, after)
    read_all(dataset)
    if before is not None:
        read_all(Dataset.open(DatasetRef(url=str(url), digest=before)))


class Killer:
    """Kills attempts at random: anywhere in their course, or as soon as some file or other appears."""

    def __init__(self, kills: int, signs: Sequence[str], lasts: float) -> None:
        self._chance = random.Random(kills)
        self._signs, self._lasts = signs, lasts
        self.left = kills

    def kill(self, process: BaseProcess, url: Path) -> bool:
        """Whether the process that ingests into `url` was still there to be killed."""
        if self._chance.random() < 0.35:
            time.sleep(self._chance.uniform(0, self._lasts))
        else:
            self._await(process, url, self._chance.choice(self._signs))
            time.sleep(self._chance.choice((0, 0, 0.001, 0.01)))
        if not process.is_alive():
            return False
        process.kill()
        process.join(60)
        killed = process.exitcode != 0
        self.left -= killed
        return killed

    def _await(self, process: BaseProcess, url: Path, sign: str) -> None:
        there = set(url.glob(sign))
        while process.is_alive() and not set(url.glob(sign)) - there:
            time.sleep(0.0002)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("scenario", ["first", "nightly", "adopted"])
def test_killed_at_random_it_ends_in_the_same_files(
    scenario: str, start: Start, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    kills = MANY_KILLS if pytestconfig.getoption("--benchmarks") else KILLS
    source = fill_tars(tmp_path / "tars") if scenario == "adopted" else fill(tmp_path / "raw", "abc", *range(60))
    signs = (*(ADOPTED if scenario == "adopted" else WRITTEN), *PUBLISHED)
    base, before = tmp_path / "base", None
    base.mkdir()
    if scenario == "nightly":
        before = ingest(str(source), str(base), CONFIG).digest
        change(source)

    def prepare(name: str) -> Path:
        return Path(shutil.copytree(base, tmp_path / name))

    whole = prepare("whole")
    start(source, prepare("unmeasured")).outcome()  # the first may pay for the server
    began = time.monotonic()
    after = start(source, whole).outcome()["digest"]
    lasts = time.monotonic() - began
    read_all(Dataset.open(str(whole)))

    killer, datasets = Killer(kills, signs, lasts), 0
    while killer.left:  # an attempt may be quicker than the killer: then the kills that are left go to another dataset
        datasets += 1
        url = prepare(f"torn-{datasets}")
        attempt = start(source, url)
        while killer.left and killer.kill(attempt.process, url):
            check(url, before, after)
            attempt = start(source, url)
        assert attempt.outcome() == {"digest": after}
        check(url, before, after)
        assert published(url) == published(whole)
        assert not list(url.glob("[!_]*/.shard-*")), "who writes a shard again removes what the killed left of it"
        remove(find_garbage(str(url), grace_s=0))
        assert published(url) == published(whole), "garbage is what is hidden, nothing else"
        assert {path.name for path in url.rglob(".*")} <= {".dataset.json.lock"}
    print(f"\n{kills} kills, {datasets} datasets; undisturbed it takes {lasts:.2f} s")


def test_two_at_once_publish_one_after_the_other_or_one_is_told(start: Start, tmp_path: Path) -> None:
    corpora = [fill(tmp_path / "one", "ab", *range(30)), fill(tmp_path / "two", "ab", *range(200, 230))]
    alone = [ingest(str(corpus), f"{corpus}-alone", CONFIG) for corpus in corpora]
    losers = 0
    for number in range(ROUNDS):
        url, go = tmp_path / f"url-{number}", tmp_path / f"go-{number}"
        attempts = [start(corpus, url, go) for corpus in corpora]
        go.touch()
        outcomes = [attempt.outcome() for attempt in attempts]
        current = Dataset.open(str(url))
        assert {"digest": current.digest} in outcomes
        for corpus, ref, outcome in zip(corpora, alone, outcomes, strict=True):
            if "error" in outcome:
                losers += 1
                assert outcome["error"].startswith("WorkError: somebody else published a version")
                assert current.digest != ref.digest
            else:
                assert outcome["digest"] == ref.digest
                read_all(Dataset.open(DatasetRef(url=str(url), digest=ref.digest)))
            tars = {name: data for name, data in published(Path(ref.url)).items() if not name.startswith("_vit/")}
            assert {name: published(url)[name] for name in tars if name != "dataset.json"} == {
                name: data for name, data in tars.items() if name != "dataset.json"
            }
            assert ingest(str(corpus), str(url), CONFIG).digest == ref.digest, "told to run again, it gets its turn"
            read_all(Dataset.open(str(url)))
    print(f"\n{losers} of {ROUNDS} rounds had a loser")


if __name__ == "<run_path>":
    work(json.loads(globals()["JOB"]))
