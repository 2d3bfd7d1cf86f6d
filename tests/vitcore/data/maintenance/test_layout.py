"""What `check_layout` says of trainings that would not work out, or not well."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitcore import storage
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.ingest.ingest import ingest
from vitcore.data.maintenance.findings import Finding, fit
from vitcore.data.maintenance.layout import check_layout
from vitcore.recipe import Compute, Recipe, apply_overrides


def look(
    dataset: Dataset, recipe: Recipe, workers: int = 1, compute: Compute | None = None, **over: Any
) -> list[Finding]:
    changed = apply_overrides(recipe, {name.replace("__", "."): value for name, value in over.items()})
    return check_layout(dataset, changed, compute or Compute(), workers=workers)


def about(findings: list[Finding], words: str) -> Finding:
    (finding,) = (one for one in findings if words in one.text)
    return finding


def test_a_good_layout_is_described(toy: Dataset, plain: Recipe) -> None:
    findings = look(toy, plain)
    assert [one.severity for one in findings] == ["warning", "note"]
    assert "chosen by 47 photographs of val" in findings[0].text
    # 92 samples in batches of 20, 8 shards
    assert "an epoch has 4.6 steps of 20 samples in 5 lanes; of 8 shards a worker reads about 8" in findings[1].text


def test_idle_slots(toy: Dataset, plain: Recipe) -> None:
    finding = about(look(toy, plain, workers=2), "padding")
    assert finding.severity == "warning"
    assert "17% of the slots" in finding.text  # 5 lanes on 2 ranks: 3 and 2
    assert "set data.lanes to 4" in finding.text
    assert "or take 1 worker" in finding.text
    assert not [one for one in look(toy, plain, workers=2, data__lanes=4) if "padding" in one.text]
    finding = about(look(toy, plain, workers=3, data__lanes=20), "padding")
    assert finding.severity == "note"  # 20 lanes on 3 ranks: 7, 7 and 6
    assert "take a train.batch_size that 3 divides, or 2 workers" in finding.text


def test_lanes_that_cannot_be(toy: Dataset, plain: Recipe) -> None:
    assert "6 workers cannot share 5 lanes" in about(look(toy, plain, workers=6), "cannot share").text
    assert not fit(look(toy, plain, workers=6))
    assert "does not divide the batch" in about(look(toy, plain, data__lanes=3), "data.lanes").text
    findings = look(toy, plain, train__batch_size=200, data__lanes=200)
    assert "200 lanes need at least as many samples" in about(findings, "200 lanes").text


def test_a_batch_larger_than_the_split(toy: Dataset, plain: Recipe) -> None:
    finding = about(look(toy, plain, train__batch_size=100), "spans epochs")
    assert finding.severity == "warning"


def test_small_photographs(toy: Dataset, plain: Recipe) -> None:
    finding = about(look(toy, plain, data__image_size=224), "enlarged")
    assert finding.severity == "warning"
    assert "100% of the photographs are smaller than data.image_size 224" in finding.text
    some = look(toy, plain, data__image_size=38)  # heights are 36 to 40
    assert about(some, "enlarged").severity in ("note", "warning")
    assert "100%" not in about(some, "enlarged").text


def test_splits_and_fields(toy: Dataset, plain: Recipe, tmp_path: Path) -> None:
    findings = look(toy, plain, eval__split="test")
    assert not fit(findings)
    assert "no split 'test'" in about(findings, "eval.split").text
    findings = look(toy, plain, data__train_split="tarin")
    assert "no split 'tarin'" in about(findings, "data.train_split").text
    assert "has no captions" in about(look(toy, plain, data__captions=True), "captions").text
    for number in range(30):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)
        (tmp_path / "raw").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"raw/{number}.png")
    bare = Dataset.open(ingest(str(tmp_path / "raw"), str(tmp_path / "data")))
    assert "has no label" in about(look(bare, plain), "label").text


def test_one_class(plain: Recipe, tmp_path: Path) -> None:
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)
        folder = tmp_path / "raw" / ("train" if number < 20 else "val") / "only"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    dataset = Dataset.open(ingest(str(tmp_path / "raw"), str(tmp_path / "data")))
    assert about(look(dataset, plain), "has 1 classes").severity == "error"


@pytest.fixture
def remote(toy: Dataset, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """`toy` as if its shards lay in a store."""
    real = storage.is_local
    layout = "vitcore.data.maintenance.layout"
    monkeypatch.setattr(f"{layout}.storage.is_local", lambda url: real(url) and not url.endswith(".tar"))
    return toy


def test_the_cache_of_remote_shards(
    remote: Dataset, plain: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy = Compute(cache_dir=str(tmp_path))
    assert [one.severity for one in look(remote, plain, compute=roomy)] == ["warning", "note"]
    # 5 lanes, two windows of 8 samples each: 80 of 92 samples.
    size = remote.manifest.splits["train"].bytes * 80 / 92
    finding = about(look(remote, plain, compute=Compute(cache_dir=str(tmp_path), cache_gb=size / 2 / 2**30)), "cache")
    assert finding.severity == "warning"
    assert "set compute.cache_gb to 1, or data.window to 4" in finding.text
    assert "there is no folder" in about(look(remote, plain, compute=Compute(cache_dir="/nowhere")), "folder").text
    monkeypatch.setattr("vitcore.data.maintenance.layout.shutil.disk_usage", lambda _: SimpleNamespace(free=size / 4))
    assert about(look(remote, plain, compute=roomy), "set compute.cache_dir to a folder").severity == "error"
    assert not [one for one in look(remote, plain, 5, roomy) if one.severity == "error"]
    monkeypatch.setattr("vitcore.data.maintenance.layout.shutil.disk_usage", lambda _: SimpleNamespace(free=size * 0.9))
    assert about(look(remote, plain, 2, roomy), "the caches of 2 workers").severity == "warning"


def test_local_shards_need_no_cache(toy: Dataset, plain: Recipe) -> None:
    findings = look(toy, plain, compute=Compute(cache_gb=0, cache_dir="/nowhere"))
    assert fit(findings)
    assert not [one for one in findings if "cache" in one.text]
