"""What is removed, and above all what is not."""

import os
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from tests.s3 import S3
from vitcore import storage
from vitcore.data.dataset import manifest
from vitcore.data.dataset.edit import edit
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.ingest.ingest import ingest
from vitcore.data.ingest.mode import Mode
from vitcore.data.ingest_config import IngestConfig
from vitcore.data.maintenance import garbage
from vitcore.data.maintenance.check import check
from vitcore.data.maintenance.garbage import find_garbage, remove
from vitcore.data.maintenance.repair import repair
from vitcore.data.teaching.outputs import Outputs, Stream, commit, folder
from vitcore.errors import RequestError, WorkError
from vitcore.recipe import DataConfig

CONFIG = IngestConfig(shard_mb=0.05)


def photograph(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(coarse).resize((24, 24)).save(path)


def files(url: str) -> set[str]:
    return {str(path.relative_to(url)) for path in Path(url).rglob("*") if path.is_file()}


def age(url: str, days: float = 2) -> None:
    """As if nothing had been touched for some days."""
    when = time.time() - days * garbage.DAY
    for path in Path(url).rglob("*"):
        os.utime(path, (when, when))


@pytest.fixture
def three(tmp_path: Path) -> list[Dataset]:
    """Three versions of one URL: a corpus, one photograph more, and one of the first less."""
    raw, url = tmp_path / "raw", str(tmp_path / "data")
    for seed in range(6):
        photograph(raw / f"train/{'ab'[seed % 2]}/{seed}.png", seed)
    versions = [Dataset.open(ingest(str(raw), url, CONFIG))]
    photograph(tmp_path / "more/train/a/6.png", 6)
    versions.append(Dataset.open(ingest(str(tmp_path / "more"), url, CONFIG, mode=Mode(append=True))))
    (tmp_path / "withdrawn.csv").write_text(f"key\n{versions[0].index('train').keys[0]}\n")
    versions.append(Dataset.open(edit(url, str(tmp_path / "withdrawn.csv"), delete=True)))
    return versions


def test_what_versions_need_is_no_garbage(three: list[Dataset]) -> None:
    age(three[0].url)
    found = find_garbage(three[0].url)
    assert found.trash == ()
    assert found.kept == (three[2].digest, *sorted(one.digest for one in three[:2]))
    assert all(check(one.ref, "full")[1:] == [] for one in three)


def test_only_old_versions_go_with_what_only_they_need(three: list[Dataset]) -> None:
    url, (first, second, third) = three[0].url, three
    age(url)
    before = files(url)
    found = find_garbage(url, keep=2)
    assert (found.kept, found.versions) == ((third.digest, second.digest), (first.digest,))
    kinds = [one.kind for one in found.trash]
    assert kinds[:2] == ["identity", "version"]
    # Not even its shard goes: both other versions list it. Its corpus has another ledger.
    assert sorted(kinds[2:]) == ["ledger", "shard list"]
    assert found.bytes == sum((Path(url) / one.path).stat().st_size for one in found.trash)
    assert files(url) == before
    remove(found)
    assert files(url) == before - {one.path for one in found.trash}
    assert check(second.ref, "full") == []
    assert manifest.versions(url) == [third.digest, second.digest]
    assert find_garbage(url, keep=2).trash == ()


def test_shards_of_removed_versions(three: list[Dataset], tmp_path: Path) -> None:
    url = three[0].url
    photograph(tmp_path / "other/train/a/100.png", 100)
    photograph(tmp_path / "other/train/b/101.png", 101)
    last = Dataset.open(ingest(str(tmp_path / "other"), url, CONFIG))
    age(url)
    gone = {shard.name for one in three for shard in one.shards("train")}
    remove(find_garbage(url, keep=1))
    left = files(url)
    stem = last.shards("train")[0].name.removesuffix(".tar")
    assert not gone & left
    ledger = {name for name in left if name.startswith("_vit/ledger/")}
    identity = {name for name in left if name.startswith("_vit/identities/")}
    assert (len(ledger), len(identity)) == (1, 1)
    assert left - ledger - identity == {
        "dataset.json",
        last.manifest.excluded,  # a photograph that was withdrawn stays withdrawn
        f"_vit/{last.digest}.json",
        f"_vit/{last.digest}.train.parquet",
        *(f"{stem}{part}" for part in (".tar", ".index.parquet", "_stats.json")),
    }
    assert check(url, "full") == []


def test_a_version_that_is_young_or_kept_by_days_stays(three: list[Dataset]) -> None:
    url = three[0].url
    assert find_garbage(url, keep=1).versions == ()  # all of them are of today
    age(url, 10)
    for one in three[1:2]:
        os.utime(manifest.version_file(url, one.digest), (time.time() - 3 * garbage.DAY,) * 2)
    assert find_garbage(url, keep_days=5).versions == (three[0].digest,)
    assert set(find_garbage(url, keep_days=1).versions) == {one.digest for one in three[:2]}
    assert find_garbage(url, keep=2, keep_days=1).versions == (three[0].digest,)


def test_an_ingest_that_runs_is_not_hurt(three: list[Dataset]) -> None:
    """Of a shard that was abandoned long ago and is come to again, one file is young."""
    url = three[0].url
    stem = "train/0123abcd-00000"
    for part in (".tar", ".index.parquet", "_stats.json"):
        (Path(url) / f"{stem}{part}").write_bytes(b"x")
    assert find_garbage(url).trash == ()
    age(url)
    assert {one.path for one in find_garbage(url).trash} == {
        f"{stem}{part}" for part in (".tar", ".index.parquet", "_stats.json")
    }
    os.utime(Path(url) / f"{stem}_stats.json")
    assert find_garbage(url).trash == ()


def test_what_killed_writers_left(three: list[Dataset]) -> None:
    url = Path(three[0].url)
    mine = [
        ".dataset.json.0123abcd.tmp",
        "_vit/.0123456789abcdef.json.0123abcd.tmp",
        "_vit/index/.0123456789abcdef-0123456789abcdef.parquet.0123abcd.tmp",
        "train/.0123abcd-00000.tar.0123abcd.tmp",
    ]
    others = [".notes.tmp", "train/.photo.jpg.0123abcd.tmp", "train/notes.txt", "_vit/notes.txt", "README.md"]
    (url / "_vit/index").mkdir(exist_ok=True)
    (url / "train/.shard-0123abcd-00000-xyz").mkdir()
    for name in [*mine, *others, "train/.shard-0123abcd-00000-xyz/shard.tar"]:
        (url / name).write_bytes(b"12345")
    assert find_garbage(str(url)).trash == ()
    age(str(url))
    found = find_garbage(str(url))
    assert {one.path for one in found.trash} == {*mine, "train/.shard-0123abcd-00000-xyz"}
    assert found.bytes == 25
    (url / "train/.shard-0123abcd-00000-xyz/shard.tar").touch()  # somebody is writing it
    assert {one.path for one in find_garbage(str(url)).trash} == set(mine)
    age(str(url))
    remove(find_garbage(str(url)))
    assert not (url / "train/.shard-0123abcd-00000-xyz").exists()
    assert {name for name in others if (url / name).exists()} == set(others)


def test_tars_of_others_are_never_removed(three: list[Dataset]) -> None:
    """Where tars were adopted, one that is named like ours may be theirs, on its way to be adopted."""
    url = Path(three[0].url)
    tar = "train/0123abcd-00000.tar"
    (url / tar).write_bytes(b"x")
    (url / "train/birds-000000.tar").write_bytes(b"x")
    (url / "_vit/adopt").mkdir()
    for extension in ("json", "parquet"):
        (url / f"_vit/adopt/0123456789abcdef.{extension}").write_bytes(b"{}")
    age(str(url))
    assert {one.path for one in find_garbage(str(url)).trash} == {
        f"_vit/adopt/0123456789abcdef.{extension}" for extension in ("json", "parquet")
    }
    shutil.rmtree(url / "_vit/adopt")
    assert {one.path for one in find_garbage(str(url)).trash} == {tar}


def test_what_a_repair_set_aside(three: list[Dataset]) -> None:
    url = three[0].url
    lost = next(one for one in three[2].shards("train") if one.samples == 1)
    (Path(url) / lost.name).write_bytes(b"rubbish")
    repair(url)
    assert (Path(url) / "_vit/quarantine" / lost.name).exists()
    age(url)
    assert {one.kind for one in find_garbage(url).trash} == {"quarantined tar"}


def test_what_cannot_be_known_is_not_touched(three: list[Dataset]) -> None:
    url = three[0].url
    age(url)
    with pytest.raises(RequestError, match="at least the current version"):
        find_garbage(url, keep=0)
    name = Path(url) / f"_vit/{three[0].digest}.train.parquet"
    whole = name.read_bytes()
    name.write_bytes(whole[:-9])
    with pytest.raises(WorkError, match="missing or damaged"):
        find_garbage(url)
    assert find_garbage(url, keep=2).versions == (three[0].digest,)
    name.write_bytes(whole)
    Path(manifest.version_file(url, three[0].digest)).write_text("{")
    with pytest.raises(WorkError, match="is damaged"):
        find_garbage(url, keep=2)


def test_somebody_publishes_meanwhile(three: list[Dataset]) -> None:
    url = three[0].url
    age(url)
    found = find_garbage(url, keep=1)
    manifest.point(url, three[0].digest, expected=three[2].digest)
    before = files(url)
    with pytest.raises(WorkError, match="meanwhile; nothing was removed"):
        remove(found)
    assert files(url) == before


def test_killed_half_way(three: list[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = three[0].url
    photograph(tmp_path / "other/train/a/100.png", 100)
    photograph(tmp_path / "other/train/b/101.png", 101)
    ingest(str(tmp_path / "other"), url, CONFIG)
    age(url)
    found = find_garbage(url, keep=1)
    removed: list[str] = []
    real = storage.remove

    def few(name: str) -> None:
        if len(removed) == 5:
            raise OSError("killed")
        removed.append(name)
        real(name)

    with monkeypatch.context() as patch:
        patch.setattr("vitcore.data.maintenance.garbage.storage.remove", few)
        with pytest.raises(WorkError, match="killed"):
            remove(found)
    assert len(removed) == 5
    age(url)
    remove(find_garbage(url, keep=1))
    assert not {one.path for one in found.trash} & files(url)
    assert check(url, "full") == []


def test_a_store(tmp_path: Path) -> None:
    MemoryFileSystem.store.clear()
    url = "memory://tidied"
    for number in range(2):
        photograph(tmp_path / f"{number}/train/a/0.png", 10 * number)
        photograph(tmp_path / f"{number}/train/b/1.png", 10 * number + 1)
        last = ingest(str(tmp_path / str(number)), url, CONFIG)
    store = MemoryFileSystem()
    store.pipe("/tidied/dataset.json.claims/0123456789abcdef", b"host 1")
    assert find_garbage(url, keep=1).trash == ()
    for file in store.store.values():
        file.modified = datetime.now(UTC) - timedelta(days=2)
    found = find_garbage(url, keep=1)
    assert len(found.versions) == 1
    assert {one.kind for one in found.trash} == {"identity", "version", "shard list", "shard", "ledger", "claim"}
    remove(found)
    assert check(last, "full") == []
    assert len([name for name in store.find("/tidied") if name.endswith(".tar")]) == 1


def test_s3(toy: Dataset, s3: S3) -> None:
    url, raw = s3.fresh(), str(Path(toy.url).parent / "raw")
    before = Dataset.open(ingest(raw, url, CONFIG))
    lost, half = before.shards("train")[:2]
    storage.write(before.shard_url(lost), b"rubbish")
    storage.write(before.shard_url(half), storage.read(before.shard_url(half))[: half.bytes // 2])
    storage.remove(storage.join(url, before.shards("val")[0].index))
    assert repair(url).findings == ()
    assert storage.read(storage.join(url, "_vit/quarantine", lost.name)) == b"rubbish"
    assert find_garbage(url, keep=1).trash == ()  # all of it is young
    remove(find_garbage(url, keep=1, grace_s=0))
    assert find_garbage(url, keep=1, grace_s=0).trash == ()
    assert not storage.exists(storage.join(url, "_vit/quarantine", lost.name))
    again = Dataset.open(ingest(raw, url, CONFIG))
    assert again.manifest.splits["train"].samples == before.manifest.splits["train"].samples
    assert check(again.ref, "full") == []


def test_a_teachers_outputs_stay_with_their_version(three: list[Dataset]) -> None:
    url, (first, _, third) = three[0].url, three
    names = {}
    for dataset in (first, third):
        stream = Stream(data=DataConfig(), datasets=(dataset.digest, first.digest), batch_size=8, seed=0)
        what = Outputs(dataset=dataset.digest, stream=stream, teacher="t", ref="t", top=1, classes=2, span=4, steps=0)
        place = folder(url, what.identity)
        commit(place, what)  # from the start of a writing that lasts for days
        Path(place, "00000000-00000004.safetensors").write_bytes(b"x")
        Path(place, ".00000004-00000008.safetensors.0123abcd.tmp").write_bytes(b"x")
        Path(place, "notes.txt").write_bytes(b"x")
        names[dataset.digest] = f"_vit/teacher/{what.identity}/"
    age(url)
    half = [f"{one}.00000004-00000008.safetensors.0123abcd.tmp" for one in names.values()]
    assert {one.path for one in find_garbage(url).trash} == set(half)
    found = {one.path: one.kind for one in find_garbage(url, keep=2).trash}
    gone = {f"{names[first.digest]}{name}" for name in ("outputs.json", "00000000-00000004.safetensors")}
    assert {path for path in found if path.startswith("_vit/teacher/")} == gone | set(half)
    assert {found[path] for path in gone} == {"teacher's outputs"}
    remove(find_garbage(url, keep=2))
    assert {one for one in files(url) if one.startswith("_vit/teacher/") and "notes" not in one} == {
        f"{names[third.digest]}{name}" for name in ("outputs.json", "00000000-00000004.safetensors")
    }
