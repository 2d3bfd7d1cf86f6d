"""``python -m experiments``: train whatever is missing, then write the page with tables and plots."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path

import torch

from experiments import captions, distillation, growth, pretraining
from experiments.corpora import Corpora
from experiments.report import write
from experiments.runs import Laboratory
from vitcore.errors import RequestError, WorkError

CLAIMS = {"pretraining": pretraining, "distillation": distillation, "growth": growth, "captions": captions}
HEAD = """# The papers' claims, in small

Written by `make reproduce` on {machine}, torch {torch}; {minutes:.0f} core-minutes of training. Each claim is tried
with small networks on CIFAR-10 and Flickr8k; what was found is what is written. Intervals are Student's, over seeds,
at 95 %; differences are paired by seed."""


def main() -> int:
    """Run the command line; returns the exit code."""
    given = _arguments()
    given.work.mkdir(parents=True, exist_ok=True)
    laboratory = Laboratory(given.work / "runs", lambda line: print(line, flush=True))
    corpora = Corpora(given.cifar10, given.flickr8k, given.work)
    chosen = given.only or list(CLAIMS)
    began = time.monotonic()
    try:
        runs = {name: CLAIMS[name].runs(corpora) for name in chosen}
        results = laboratory.do([run for claim in runs.values() for run in claim])
        sections = [CLAIMS[name].section(corpora, results) for name in chosen]
    except (RequestError, WorkError) as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 2 if isinstance(error, RequestError) else 1
    minutes = sum(
        result.seconds * run.cores for claim in runs.values() for run in claim for result in (results[run.name],)
    )
    head = HEAD.format(
        machine=f"{platform.machine()}, {os.cpu_count()} cores", torch=torch.__version__, minutes=minutes / 60
    )
    page = write(sections, given.out, head)
    print(f"{page} written after {(time.monotonic() - began) / 60:.0f} minutes")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    data = Path(os.environ.get("VIT_TEST_DATA", "."))
    parser.add_argument(
        "--cifar10",
        type=Path,
        default=data / "cifar10.tar.gz",
        help="CIFAR-10 as {train,test}/CLASS/*.jpg, or a tar of it",
    )
    parser.add_argument(
        "--flickr8k",
        type=Path,
        default=data / "flickr8k-128.tar",
        help="Flickr8k: photographs and captions.csv (image, split, caption), or a tar of them",
    )
    parser.add_argument("--work", type=Path, default=Path(".vit/experiments"), help="folder of datasets and trainings")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the page")
    parser.add_argument("--only", choices=CLAIMS, action="append", help="one claim; may be given several times")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
