"""`vit check` as it is typed: what it prints, and the exit codes."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.cli.main import main
from vitcore.data.dataset.manifest import Dataset, DatasetRef


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_HOME", str(tmp_path / "home"))


@pytest.fixture
def data(toy: Dataset, tmp_path: Path) -> Dataset:
    shutil.copytree(toy.url, tmp_path / "data")
    return Dataset.open(str(tmp_path / "data"))


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    answer: dict[str, object] = json.loads(capsys.readouterr().out)
    return answer


def test_repair(spoil: Callable[..., DatasetRef], capsys: pytest.CaptureFixture[str]) -> None:
    ref = spoil("train", 3)
    assert main(["check", ref.url, "--sample", "full", "--json"]) == 1
    assert said(capsys)["fit"] is False
    assert main(["check", ref.url, "--repair", "--dry-run"]) == 1
    shown = capsys.readouterr()
    assert "would be done: 1 of 11 photographs" in shown.out
    assert "unfit" in shown.err
    assert Dataset.open(ref.url).digest == ref.digest
    assert main(["check", ref.url, "--repair"]) == 0
    shown = capsys.readouterr()
    assert "repaired: 1 of 11 photographs" in shown.out
    assert "published version" in shown.err
    assert main(["check", ref.url, "--repair"]) == 0
    assert "nothing is damaged" in capsys.readouterr().err
    assert main(["check", ref.url, "--versions", "all", "--json"]) == 0
    assert "only older versions need it" in str(said(capsys)["findings"])


def test_garbage(data: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    orphan = Path(data.url) / "train/0123abcd-00000.tar"
    orphan.write_bytes(b"x" * 5000)
    then = time.time() - 30 * 3600
    os.utime(orphan, (then, then))
    assert main(["check", data.url, "--gc", "--dry-run", "--grace-hours", "48"]) == 0
    assert "0 files" in capsys.readouterr().err
    assert main(["check", data.url, "--gc", "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "train/0123abcd-00000.tar" in shown.out
    assert "5 KB" in shown.out
    assert "1 files of 5 KB would be removed; 1 versions" in shown.err
    assert orphan.exists()
    assert main(["check", data.url, "--gc", "--json"]) == 0
    answer = said(capsys)
    assert (answer["removed"], answer["bytes"], answer["kept"]) == (True, 5000, [data.digest])
    assert not orphan.exists()


def test_a_layout(data: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    layout = ["check", data.url, "--for", "vit_tiny_cpu", "--train.batch-size", "32"]
    assert main([*layout, "--compute.workers", "2"]) == 0
    assert "an epoch has 2.9 steps of 32 samples in 4 lanes" in capsys.readouterr().out
    assert main([*layout, "--compute.workers", "5", "--json"]) == 1
    answer = said(capsys)
    assert answer["workers"] == 5
    assert "5 workers cannot share 4 lanes" in str(answer["findings"])
    assert main([*layout, "--json"]) == 0
    assert said(capsys)["workers"] in (1, 2)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--repair --gc", "ask for one after the other"),
        ("--keep 2", "give --gc too"),
        ("--gc --keep -1", "takes a number from 0"),
        ("--gc --keep 0", "at least the current version"),
        ("--dry-run", "a check changes nothing"),
        ("--gc --versions all", "--versions is for a check"),
        ("--gc --sample full", "--sample has no meaning"),
        ("--for nobody", "there is no recipe 'nobody'"),
        ("--for vit_s16 --data.lane 3", "there is no option --data.lane; did you mean --data.lanes?"),
        ("--for vit_s16 --compute.workers 0", "compute.workers: must be at least 1"),
    ],
)
def test_wrong_requests(data: Dataset, line: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", data.url, *line.split()]) == 2
    assert sentence in capsys.readouterr().err
