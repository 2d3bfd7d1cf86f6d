"""`vit audit`: what it finds, writes and draws, and which exit code it ends with."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.cli.main import main
from vitcore.data.audit.overlap import find
from vitcore.data.dataset.edit import edit
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.ingest.ingest import ingest
from vitcore.data.ingest_config import IngestConfig


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """State under the test's own folder, and an environment that is put back."""
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    os.environ["VIT_HOME"] = str(tmp_path / ".vit")
    os.environ["COLUMNS"] = "160"
    yield
    os.environ.clear()
    os.environ.update(before)


def photograph(number: int, quality: int = 92, side: int = 96) -> bytes:
    coarse = np.random.default_rng(number).integers(0, 256, (8, 9, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def dataset(root: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        path = root / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return ingest(str(root / "raw"), str(root / "dataset"), IngestConfig()).url


@pytest.fixture
def leaky(tmp_path: Path) -> str:
    """20 photographs to train on, one of them twice; 12 to test on, two of which are known."""
    files = {f"train/a/{number}.jpg": photograph(number) for number in range(20)}
    files |= {f"test/a/{number}.jpg": photograph(number) for number in range(50, 60)}
    files |= {"train/a/again.jpg": photograph(1), "test/a/same.jpg": photograph(2)}
    files |= {"test/a/smaller.jpg": photograph(3, 70, 60)}
    return dataset(tmp_path / "leaky", files)


def test_leaks_are_shown_kept_and_end_with_1(leaky: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", leaky]) == 1
    shown = capsys.readouterr()
    assert "copies within" in shown.out
    assert "groups: 3, the largest of 2" in shown.out
    assert "test against train" in shown.out
    assert "2 photographs to evaluate on are known from training" in shown.err
    opened = Dataset.open(leaky)
    kept = find(opened, "test", opened.digest)
    assert kept is not None
    assert (kept.summary.exact, kept.summary.near) == (1, 1)


def test_json_names_every_pair(leaky: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", leaky, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["leaks"] is True
    assert (found["copies"]["exact"], found["copies"]["near"], found["copies"]["groups"]) == (2, 1, [2, 2, 2])
    (leakage,) = found["leakage"]
    assert (leakage["split"], leakage["exact"], leakage["near"]) == ("test", 1, 1)
    assert [pair["exact"] for pair in leakage["copies"]] == [True, False]


def test_the_list_of_redundant_photographs_mends_the_dataset(leaky: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", leaky, "--redundant", "copies.csv", "--figure", "pairs.png"]) == 1
    with Path("copies.csv").open() as file:
        listed = list(csv.DictReader(file))
    reasons = sorted(row["reason"].rpartition(" ")[0] for row in listed)
    assert reasons == ["copy of", "copy of", "near copy of"]
    assert Path("pairs.png").read_bytes().startswith(b"\x89PNG")
    edit(leaky, "copies.csv", delete=True)
    capsys.readouterr()
    assert main(["audit", leaky]) == 0
    assert "no photograph to evaluate on is known from training" in capsys.readouterr().err
    assert Dataset.open(leaky).split("test").samples == 12  # the training photographs went


def test_another_dataset_is_audited_against_what_is_trained_on(
    leaky: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = dataset(tmp_path / "clean", {f"train/a/{number}.jpg": photograph(number) for number in range(80, 90)})
    assert main(["audit", clean, "--against", leaky, "--figure", "none.png"]) == 0
    shown = capsys.readouterr()
    assert "train against train of" in shown.out
    assert "copies within" not in shown.out
    assert not Path("none.png").exists()
    assert main(["audit", leaky, "--against", clean, "--split", "test", "--redundant", "known.csv"]) == 0
    assert main(["audit", clean]) == 0  # nothing to evaluate on


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("audit", "missing URL"),
        ("audit nowhere", "does not exist"),
        ("audit x --radius 9", "--radius"),
        ("audit x --similarity 0", "--similarity"),
        ("audit x --radious 3", "did you mean --radius?"),
        ("audit LEAKY --split dev", "has no split 'dev'"),
        ("audit LEAKY --trained old", "has no split 'old'"),
        ("audit LEAKY --split train", "cannot be compared with itself"),
    ],
)
def test_a_wrong_request_is_one_sentence(line: str, words: str, leaky: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.replace("LEAKY", leaky).split()) == 2
    assert words in capsys.readouterr().err
