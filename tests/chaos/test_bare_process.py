"""SIGKILL of `python -m vitcore.train`, again and again, then the same command until it is done."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from vitcore.models import load_pretrained
from vitcore.recipe import Recipe
from vitcore.train.request import TrainRequest

KILLS = 8
MANY_KILLS = 100
"""With --benchmarks."""
STEPS = 40
INTERVAL = 5
KEEP = 2
OVERRIDES = {"train.duration": f"{STEPS} steps", "eval.every": "8 steps"}


def lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(request: TrainRequest) -> dict[str, bytes]:
    root = Path(request.checkpoints)
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name not in ("metrics.jsonl", "attempt.json")
    }


class Killer:
    """Starts the command and kills it at random, mostly a few steps on, sometimes before the first, `kills` times."""

    def __init__(self, start: Callable[[], Any], metrics: Path, kills: int, lasts: float) -> None:
        self._start, self._metrics, self._lasts = start, metrics, lasts
        self._chance = random.Random(kills)
        self.left = kills

    def until_done(self) -> Any:
        """The attempt that was not killed; kills that are left when an attempt is quicker are left."""
        while True:
            process = self._start()
            if self.left:
                self._wait(process)
            if not (self.left and process.is_alive()):
                process.join(120)
                return process
            process.kill()
            process.join(60)
            self.left -= 1

    def _wait(self, process: Any) -> None:
        if self._chance.random() < 0.4:
            time.sleep(self._chance.uniform(0, 0.6 * self._lasts))
            return
        enough = len(lines(self._metrics)) + self._chance.randint(0, 2 * INTERVAL)
        while process.is_alive() and len(lines(self._metrics)) <= enough:
            time.sleep(0.002)
        time.sleep(self._chance.uniform(0, 0.02))


@pytest.mark.timeout(900)
def test_killed_at_random_it_ends_in_the_same_files(
    lively: Recipe, make_request: Any, processes: Any, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    kills = MANY_KILLS if pytestconfig.getoption("--benchmarks") else KILLS
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def prepare(name: str) -> tuple[TrainRequest, Callable[[], Any]]:
        request = make_request(lively, name, OVERRIDES, checkpoint_every=f"{INTERVAL} steps", keep=KEEP)
        path = tmp_path / f"{name}.json"
        path.write_text(request.model_dump_json())
        return request, lambda: processes.start({"arguments": [str(path)]}, TMPDIR=str(scratch))

    whole, start = prepare("whole")
    lasts = []
    for _ in range(2):  # the first pays for the fork server; the second finds it done
        began = time.monotonic()
        reference = start()
        reference.join(120)
        lasts.append(time.monotonic() - began)
        assert reference.exitcode == 0, reference.log.read_text()

    left, lost = kills, []
    while left:  # an attempt may be quicker than the killer: then the rest of the kills go to another training
        torn, start = prepare(f"torn-{left}")
        killer = Killer(start, Path(torn.checkpoints) / "metrics.jsonl", left, lasts[1] + 1)
        last = killer.until_done()
        assert last.exitcode == 0, last.log.read_text()
        left = killer.left
        lost += check(torn, whole, last)
    assert list(scratch.rglob("*")) == []
    print(f"\n{kills} kills; steps lost at each return: {lost}")


def check(torn: TrainRequest, whole: TrainRequest, last: Any) -> list[int]:
    """Compare the killed training with the other; how many steps were done again at each return."""
    assert files(torn) == files(whole)
    names = {path.name for path in Path(torn.checkpoints).iterdir()}
    assert len([name for name in names if name.startswith("step-")]) == KEEP
    assert all(re.fullmatch(r"metrics\.jsonl|attempt\.json|(step|model)-[0-9]{8}", name) for name in names)
    result = json.loads(last.log.read_text().splitlines()[-1])
    assert result["step"] == STEPS
    load_pretrained(result["model"])

    expected = {line["step"]: line["train/loss"] for line in logged(whole)}
    said = logged(torn)
    assert {line["step"]: line["train/loss"] for line in said} == expected
    assert all(line["train/loss"] == expected[line["step"]] for line in said)
    steps = [line["step"] for line in said]
    lost = [before - after + 1 for before, after in pairwise(steps) if after <= before]
    assert all(count <= INTERVAL for count in lost)
    return lost


def logged(request: TrainRequest) -> list[dict[str, Any]]:
    return [line for line in lines(Path(request.checkpoints) / "metrics.jsonl") if "train/loss" in line]
