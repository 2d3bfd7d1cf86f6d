"""What a night costs: 1 % of new photographs against the whole corpus, and the memory of the processes that write."""

from __future__ import annotations

import resource
import shutil
import tarfile
import time
from pathlib import Path

from vitcore.data.dataset.manifest import Dataset
from vitcore.data.ingest.ingest import ingest
from vitcore.data.ingest.mode import Mode
from vitcore.data.ingest.parallel import processes, threads

SHARE = 100  # one photograph in so many is new
ROUNDS = 3
GOAL = 0.05  # of the time of the whole ingest


def timed(source: Path, url: str, *, append: bool = False, first: bool = False) -> float:
    started = time.perf_counter()
    ingest(str(source), url, mode=Mode(append=append), mapper=processes(2) if first else threads(2))
    return time.perf_counter() - started


def test_a_night_costs_a_twentieth(real_data: Path, tmp_path: Path) -> None:
    with tarfile.open(real_data / "cifar10.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    corpus = tmp_path / "cifar10"
    files = sorted(corpus.rglob("*.jpg"))
    new = files[::SHARE]
    assert len(files) == 60_000
    whole, appended, compared = [], [], []
    for number in range(ROUNDS):
        url, night = str(tmp_path / f"set{number}"), tmp_path / f"night{number}"
        for path in new:
            target = night / path.relative_to(corpus)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        whole.append(timed(corpus, url, first=True))
        shutil.copytree(url, f"{url}-again")
        appended.append(timed(night, url, append=True))
        for path in new:
            (night / path.relative_to(corpus)).rename(path)
        compared.append(timed(corpus, f"{url}-again"))
        for at in (url, f"{url}-again"):
            assert sum(info.samples for info in Dataset.open(at).manifest.splits.values()) == len(files)
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"\n{len(files):,} photographs whole   {min(whole):.2f} s (rounds {', '.join(f'{s:.2f}' for s in whole)})")
    for name, seconds in {"appended alone": appended, "found in the grown folder": compared}.items():
        rounds = ", ".join(f"{s:.2f}" for s in seconds)
        print(f"{len(new)} new, {name}: {min(seconds):.2f} s (rounds {rounds}), {min(seconds) / min(whole):.1%} of it")
    print(f"largest process that wrote: {most:.0f} MB")
    assert min(appended) <= GOAL * min(whole)
    assert most <= 1500
