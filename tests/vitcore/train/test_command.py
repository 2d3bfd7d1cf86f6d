"""`python -m vitcore.train`, alone and under torchrun, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import parts
from vitcore.models import load_pretrained
from vitcore.recipe import Recipe
from vitcore.train.__main__ import main
from vitcore.train.request import TrainRequest, TrainResult

SHORT = {"train.duration": "3 steps", "eval.every": "100%"}


def call(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if name not in {"RANK", "WORLD_SIZE"}}
    environ |= {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, env=environ, capture_output=True, text=True, timeout=120, check=False
    )


def write(request: TrainRequest, path: Path) -> str:
    path.write_text(request.model_dump_json())
    return str(path)


def test_it_trains_prints_its_result_and_exits_with_0(plain: Recipe, make_request: Any, tmp_path: Path) -> None:
    request = make_request(plain, overrides=SHORT)
    done = call("vitcore.train", write(request, tmp_path / "request.json"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = TrainResult.model_validate_json(done.stdout)
    assert (result.step, result.best_step) == (3, 3)
    assert load_pretrained(result.model).card.recipe == request.recipe
    lines = [json.loads(line) for line in (Path(request.checkpoints) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3]
    assert lines[-1]["step"] == 3


def test_torchrun_gives_one_result_and_the_same_weights(
    plain: Recipe, make_request: Any, processes: Any, tmp_path: Path
) -> None:
    request = make_request(plain, overrides=SHORT)
    command = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "vitcore.train")
    done = call(*command, write(request, tmp_path / "request.json"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert TrainResult.model_validate_json(done.stdout).step == 3
    twin = make_request(plain, "twin", SHORT)
    processes.group(2, {"tasks": [["train", twin.model_dump(mode="json")]]})
    ours, theirs = (
        {path.name: path.read_bytes() for path in parts(Path(r.checkpoints) / "step-00000003")} for r in (request, twin)
    )
    assert ours == theirs
    assert len(ours) == 2


@pytest.mark.usefixtures("one_thread")
def test_wrong_requests_exit_with_2_and_one_sentence(
    plain: Recipe, make_request: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = make_request(plain, overrides=SHORT).model_dump(mode="json")
    wrong: dict[str, tuple[Any, str]] = {
        "misspelt": (good | {"recipe": good["recipe"] | {"modle": {}}}, "recipe.modle"),
        "dataset": (good | {"data": good["data"] | {"digest": "0" * 16}}, "has no version 0000000000000000"),
        "init": (good | {"init": str(tmp_path / "none")}, "is no model"),
        "split": (good | {"recipe": good["recipe"] | {"eval": {"split": "vall"}}}, "no split 'vall'"),
        "list": ([1], "valid dictionary"),
    }
    for name, (tree, sentence) in wrong.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(tree))
        assert main([str(path)]) == 2, name
        said = capsys.readouterr()
        assert sentence in said.err, name
        assert said.err.startswith("vitcore.train: ")
        assert "Traceback" not in said.err
        assert said.out == ""
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "half.json").write_text('{"recipe":')
    for arguments in ([], ["a", "b"], [str(tmp_path / "missing.json")], [str(tmp_path / "half.json")]):
        assert main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main([str(tmp_path / "binary.json")]) == 2


@pytest.mark.usefixtures("one_thread")
def test_failing_work_exits_with_1_and_one_sentence(
    plain: Recipe, make_request: Any, spoil: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = make_request(plain, overrides=SHORT | {"data.error_budget": 0.0})
    broken = broken.model_copy(update={"data": spoil("train", *range(92))})
    assert main([write(broken, tmp_path / "broken.json")]) == 1
    assert "data.error_budget 0 allows" in capsys.readouterr().err
    (tmp_path / "file").write_text("not a folder")
    unwritable = make_request(plain, "file/run", SHORT)
    assert main([write(unwritable, tmp_path / "unwritable.json")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_told_to_leave_it_makes_a_checkpoint_first_and_the_same_command_goes_on(
    plain: Recipe, make_request: Any, processes: Any, tmp_path: Path
) -> None:
    steps = 400
    overrides = {"train.duration": f"{steps} steps", "eval.every": "100%"}
    request = make_request(plain, "run", overrides, checkpoint_every="60 min")
    arguments = [write(request, tmp_path / "request.json")]
    metrics = Path(request.checkpoints) / "metrics.jsonl"
    process = processes.start({"arguments": arguments})
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert process.is_alive(), process.log.read_text()
        time.sleep(0.01)
    process.terminate()
    process.join(60)
    assert process.exitcode == 143, process.log.read_text()
    step = max(json.loads(line)["step"] for line in metrics.read_text().splitlines())
    assert 3 < step < steps
    assert f"behind a checkpoint at step {step}; run the same again and it goes on" in process.log.read_text()
    again = processes.start({"arguments": arguments})
    again.join(120)
    assert again.exitcode == 0, again.log.read_text()
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, steps + 1))
    assert {"step": step, "event": "resumed", "detail": f"attempt 2 from step {step} with 1 worker(s)"} in lines


def test_all_ranks_leave_when_one_is_told_to(plain: Recipe, make_request: Any, processes: Any) -> None:
    request = make_request(plain, "run", {"train.duration": "9 steps"}, checkpoint_every="60 min")
    answers = processes.group(3, {"tasks": [["leave", request.model_dump(mode="json")]]})
    assert [answer[0]["left_at"] for answer in answers] == [5, 5, 5]
    assert answers[0][0]["checkpoints"] == [5, 4]
