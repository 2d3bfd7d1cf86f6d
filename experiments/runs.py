"""Trainings that are done once: each in a process of its own, two at a time, its result kept as a small JSON file.

A run is known by its name and by what it depends on. The result is written last, so a command that was stopped goes on
where it was, and a changed recipe is trained anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcore.data.dataset.manifest import DatasetRef
from vitcore.errors import WorkError
from vitcore.identity import digest
from vitcore.recipe import Compute, Recipe
from vitcore.train.request import TrainRequest


@dataclass(frozen=True)
class Run:
    """One training."""

    name: str
    recipe: Recipe
    data: DatasetRef
    init: str | None = None
    """The run it goes on from, or a public reference."""
    teacher: str | None = None
    """The run it is distilled from."""
    cores: int = 1
    """How many of the two cores it computes with."""


@dataclass(frozen=True)
class Result:
    """What came out of a run."""

    metrics: dict[str, float]
    """Of the last step, on the split that the recipe validates on."""
    model: str
    """Folder with the weights."""
    seconds: float
    """From start to end, on one core of a machine whose other core was busy as well."""


class Laboratory:
    """Runs and their results under one folder."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say

    def do(self, runs: Sequence[Run], *, cores: int = 2) -> dict[str, Result]:
        """The results of all runs, by name; what is not there is trained, after what it depends on.

        Raises:
            WorkError: a training failed; what was done before is kept.
        """
        known = {run.name: run for run in runs}
        keys: dict[str, str] = {}
        for run in runs:
            keys[run.name] = self._key(run, keys)
        results = {run.name: found for run in runs if (found := self._kept(run, keys[run.name])) is not None}
        waiting = [run for run in runs if run.name not in results]
        if not waiting:
            return results
        began, running = time.monotonic(), dict[Future[Result], Run]()
        done, total = 0.0, sum(map(_work, waiting))
        with ThreadPoolExecutor(cores) as pool:
            while waiting or running:
                for run in list(waiting):
                    needed = {name for name in (run.init, run.teacher) if name in known}
                    free = cores - sum(other.cores for other in running.values())
                    if run.cores <= free and needed <= results.keys():
                        waiting.remove(run)
                        running[pool.submit(self._train, run, keys[run.name], dict(results))] = run
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    run = running.pop(future)
                    results[run.name] = future.result()
                    done += _work(run)
                    left = (time.monotonic() - began) * (total - done) / done
                    said = ", ".join(f"{name} {value:.3f}" for name, value in results[run.name].metrics.items())
                    self._say(f"{run.name}: {said} ({results[run.name].seconds:.0f} s; {left / 60:.0f} min to go)")
        return results

    def _key(self, run: Run, keys: dict[str, str]) -> str:
        """Digest of what a run's result depends on."""
        inputs = {
            "recipe": run.recipe.identity_parts(),
            "data": run.data.digest,
            "init": keys.get(run.init or "", run.init),
            "teacher": keys.get(run.teacher or "", run.teacher),
        }
        return digest(inputs)

    def _kept(self, run: Run, key: str) -> Result | None:
        try:
            tree = json.loads((self._folder / f"{run.name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return Result(**tree["result"]) if tree["key"] == key else None

    def _train(self, run: Run, key: str, results: dict[str, Result]) -> Result:
        def place(name: str | None) -> str | None:
            return results[name].model if name in results else name

        compute = Compute(
            threads=run.cores, precision="fp32", accelerator="cpu", loader_workers=run.cores, checkpoint_every="5 min"
        )
        request = TrainRequest(
            recipe=run.recipe,
            compute=compute,
            data=run.data,
            init=place(run.init),
            teacher=place(run.teacher),
            checkpoints=str((self._folder / run.name / key).absolute()),
            identity=f"experiment-{key}",
        )
        file = self._folder / f"{run.name}.request.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(request.model_dump_json(), encoding="utf-8")
        began = time.monotonic()
        answer = _process(file, run.cores)
        result = Result(answer["metrics"], answer["model"], time.monotonic() - began)
        scratch = file.with_suffix(".tmp")
        scratch.write_text(json.dumps({"key": key, "result": vars(result)}), encoding="utf-8")
        scratch.replace(self._folder / f"{run.name}.json")
        return result


def _process(request: Path, cores: int) -> dict[str, Any]:
    environment = os.environ | {"OMP_NUM_THREADS": str(cores), "MKL_NUM_THREADS": str(cores)}
    command = [sys.executable, "-m", "vitcore.train", str(request)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if found.returncode != 0:
        raise WorkError(f"{request.stem}: {found.stderr.strip().rpartition(chr(10))[2] or found.returncode}")
    answer: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return answer


def _work(run: Run) -> float:
    """A rough measure of a training's length: views shown, times pixels."""
    count, unit = run.recipe.train.duration.split()
    assert unit == "steps", "experiments count in steps, so that contestants see as many photographs"
    return float(count) * run.recipe.train.batch_size * run.recipe.data.image_size**2
