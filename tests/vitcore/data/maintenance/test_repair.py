"""What `repair` makes of a dataset that something happened to."""

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from vitcore.data.dataset import index
from vitcore.data.dataset.edit import edit
from vitcore.data.dataset.manifest import Dataset, DatasetRef
from vitcore.data.dataset.shard import Shard
from vitcore.data.ingest.ingest import ingest
from vitcore.data.ingest_config import IngestConfig
from vitcore.data.maintenance import repair as repair_module
from vitcore.data.maintenance.check import check
from vitcore.data.maintenance.findings import fit
from vitcore.data.maintenance.repair import Repair, repair
from vitcore.errors import WorkError

CONFIG = IngestConfig(shard_mb=0.05)


@pytest.fixture
def raw(toy: Dataset) -> str:
    """Where `toy` was ingested from."""
    return str(Path(toy.url).parent / "raw")


@pytest.fixture
def data(toy: Dataset, tmp_path: Path) -> Dataset:
    """A copy of `toy`."""
    shutil.copytree(toy.url, tmp_path / "data")
    return Dataset.open(str(tmp_path / "data"))


def first(dataset: Dataset, split: str = "train") -> Shard:
    return dataset.shards(split)[0]


def tar(dataset: Dataset, shard: Shard) -> Path:
    return Path(dataset.shard_url(shard))


def keys(dataset: Dataset) -> dict[str, set[str]]:
    return {split: set(dataset.index(split).keys.tolist()) for split in dataset.manifest.splits}


def lost(before: Dataset, after: Dataset) -> set[str]:
    """Keys that are gone; everything else is as it was."""
    had, have = keys(before), keys(after)
    assert all(have[split] <= had[split] for split in have)
    return set().union(*had.values()) - set().union(*have.values())


def files(dataset: Dataset) -> dict[str, bytes]:
    root = Path(dataset.url)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_nothing_to_do(data: Dataset) -> None:
    before = files(data)
    assert repair(data.url, "full") == Repair((), None, ())
    assert files(data) == before


@pytest.mark.parametrize("how", ["missing", "damaged", "another"])
def test_a_lost_index_is_made_again(data: Dataset, how: str) -> None:
    shard = first(data)
    path = Path(data.url) / shard.index
    whole = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(
            whole[:-9] if how == "damaged" else (Path(data.url) / data.shards("val")[0].index).read_bytes()
        )
    said = repair(data.url, dry_run=True)
    assert "is made again from the tar" in said.actions[0]
    assert not fit(said.findings)
    assert not path.exists() or path.read_bytes() != whole
    outcome = repair(data.url, "full")
    assert (outcome.actions, outcome.published, outcome.findings) == (said.actions, None, ())
    assert index.decode(path.read_bytes()).equals(index.decode(whole))
    assert check(data.url, "full", versions="all") == []


def test_captions_metadata_and_groups_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["image,caption,split,camera,group"]
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,picture {number},train,Ä{number},")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    dataset = Dataset.open(ingest(str(tmp_path / "t.csv"), str(tmp_path / "data")))
    path = Path(dataset.url) / first(dataset).index
    whole = index.decode(path.read_bytes())
    assert "camera" in whole.column("extra")[0].as_py()
    path.unlink()
    assert repair(dataset.url).findings == ()
    assert index.decode(path.read_bytes()).equals(whole)


def test_an_edited_index_is_not_guessed_at(data: Dataset, raw: str, tmp_path: Path) -> None:
    """Made again from the tar it would say what was corrected, and show what was withdrawn."""
    rows = data.shard_index(first(data)).to_pylist()
    table = tmp_path / "withdrawn.csv"
    table.write_text(f"key\n{rows[0]['key']}\n")
    edited = Dataset.open(edit(data.url, str(table), delete=True))
    shard = next(one for one in edited.shards("train") if one.name == first(data).name)
    (Path(data.url) / shard.index).unlink()
    outcome = repair(data.url)
    assert fit(outcome.findings)
    assert (
        f"all photographs of {data.url}/{shard.name} are left out of train (its index is missing" in outcome.actions[0]
    )
    assert f"vit ingest {raw} {data.url}" in outcome.actions[0]
    assert tar(data, shard).exists()  # the tar is whole, and older versions need it
    repaired = Dataset.open(data.url)
    assert repaired.manifest.parent == edited.digest
    assert lost(data, repaired) == {row["key"] for row in rows}
    assert check(data.ref, "full") == []


def test_photographs_with_other_bytes_are_left_out(spoil: Callable[..., DatasetRef], raw: str) -> None:
    ref = spoil("train", 3, 4, 80)
    before = Dataset.open(ref)
    all_keys = before.index("train").keys
    outcome = repair(ref.url)
    assert len(outcome.actions) == 2  # two shards
    assert "2 of 11 photographs" in outcome.actions[0]
    assert ["3 photographs that were left out" in note.text for note in outcome.findings] == [True]
    after = Dataset.open(ref.url)
    assert outcome.published == after.ref
    assert lost(before, after) == {all_keys[3], all_keys[4], all_keys[80]}
    assert after.manifest.change == "3 damaged photographs of 2 shards left out"
    assert after.manifest.splits["train"].class_counts != before.manifest.splits["train"].class_counts
    assert after.index("train").labels.tolist() == [
        label for row, label in enumerate(before.index("train").labels.tolist()) if row not in (3, 4, 80)
    ]
    assert not any(path.exists() for path in Path(ref.url).glob("_vit/quarantine/*/*"))
    assert repair(ref.url, "full") == Repair((), None, outcome.findings)
    again = Dataset.open(ingest(raw, ref.url, CONFIG))
    assert keys(again) == keys(before)
    assert fit(check(again.ref, "full"))


@pytest.mark.parametrize("sample", [0.02, "full"])
def test_bytes_that_concern_no_photograph(data: Dataset, sample: float | str) -> None:
    path = tar(data, first(data))
    with tarfile.open(path) as members:
        about = next(member for member in members if member.name.endswith(".json"))
    changed = bytearray(path.read_bytes())
    changed[about.offset_data] ^= 1
    path.write_bytes(changed)
    outcome = repair(data.url, sample)  # type: ignore[arg-type]
    assert "none of a photograph" in outcome.actions[0]
    assert outcome.findings == ()
    after = Dataset.open(data.url)
    assert keys(after) == keys(data)
    assert first(after).checksum != first(data).checksum


def test_a_tar_cut_short_keeps_what_is_before_the_cut(data: Dataset) -> None:
    shard = first(data)
    rows = data.shard_index(shard).to_pylist()
    with tar(data, shard).open("r+b") as file:
        file.truncate(rows[5]["offset"] + 10)
    outcome = repair(data.url)
    assert outcome.findings == ()
    assert lost(data, Dataset.open(data.url)) == {row["key"] for row in rows[5:]}
    assert repair(data.url, "full").actions == ()


def test_a_missing_tar(data: Dataset, raw: str) -> None:
    shard = first(data, "val")
    rows = data.shard_index(shard)
    tar(data, shard).unlink()
    outcome = repair(data.url)
    assert "left out of val (its tar is missing)" in outcome.actions[0]
    assert outcome.findings == ()
    assert lost(data, Dataset.open(data.url)) == set(rows.column("key").to_pylist())
    assert check(Dataset.open(ingest(raw, data.url, CONFIG)).ref, "full") == []


def test_a_tar_of_no_use_is_moved_aside_and_older_versions_say_so(data: Dataset, raw: str) -> None:
    shard = first(data)
    rubbish = b"rubbish" * (shard.bytes // 7)
    tar(data, shard).write_bytes(rubbish)
    outcome = repair(data.url)
    aside = Path(data.url) / "_vit/quarantine" / shard.name
    assert f"is moved to {aside}" in outcome.actions[-1]
    assert outcome.findings == ()
    assert aside.read_bytes() == rubbish
    assert not tar(data, shard).exists()
    assert not tar(data, shard).with_name(f"{tar(data, shard).stem}_stats.json").exists()
    older = check(data.url, versions="all")
    assert [one.severity for one in older] == ["warning"]
    assert f"was damaged and is set aside as {aside}; only older versions need it ({data.digest})" in older[0].text
    assert "is set aside" in check(data.ref)[0].text
    assert check(ingest(raw, data.url, CONFIG), "full") == []


def test_a_tar_that_an_older_version_can_use_stays(data: Dataset, tmp_path: Path) -> None:
    shard = first(data)
    rows = data.shard_index(shard).to_pylist()
    (tmp_path / "withdrawn.csv").write_text("\n".join(["key", *(row["key"] for row in rows[1:])]))
    edited = Dataset.open(edit(data.url, str(tmp_path / "withdrawn.csv"), delete=True))
    with tar(data, shard).open("r+b") as file:
        file.seek(rows[0]["offset"])
        file.write(b"rubbish")
    outcome = repair(data.url)
    assert "all photographs" in outcome.actions[0]
    assert tar(data, shard).exists()
    assert lost(edited, Dataset.open(data.url)) == {rows[0]["key"]}


@pytest.mark.parametrize("step", ["write", "remove", "move", "publish"])
def test_killed_anywhere_it_goes_on(data: Dataset, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = data.shards("train"), data.shards("val")
    tar(data, train[0]).write_bytes(b"rubbish" * 100)
    (Path(data.url) / train[1].index).unlink()
    with tar(data, val[0]).open("r+b") as file:
        file.truncate(val[0].bytes // 2)

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        target = "_publish" if step == "publish" else f"storage.{step}"
        patch.setattr(f"{repair_module.__name__}.{target}", die)
        with pytest.raises(Killed):
            repair(data.url)
    assert Dataset.open(data.url).digest == data.digest
    outcome = repair(data.url)
    assert outcome.findings == ()
    assert outcome.published is not None
    assert not tar(data, train[0]).exists()
    assert repair(data.url, "full") == Repair((), None, ())


def test_a_split_that_is_lost_is_told_of(data: Dataset) -> None:
    for shard in data.shards("val"):
        tar(data, shard).unlink()
    outcome = repair(data.url)
    assert "nothing is left of the split val" in outcome.actions
    assert list(Dataset.open(data.url).manifest.splits) == ["train"]


def test_nothing_is_touched_where_nothing_would_be_left(data: Dataset) -> None:
    for split in data.manifest.splits:
        for shard in data.shards(split):
            tar(data, shard).write_bytes(b"rubbish")
    before = files(data)
    with pytest.raises(WorkError, match=r"not one photograph .* can be used; nothing was changed"):
        repair(data.url)
    assert files(data) == before


def test_a_store_that_does_not_answer_changes_nothing(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError("the store is away")

    before = files(data)
    with monkeypatch.context() as patch:
        patch.setattr("vitcore.data.maintenance.verify.storage.size", refuse)
        with pytest.raises(WorkError, match="the store is away"):
            repair(data.url)
    assert files(data) == before


def test_somebody_publishes_meanwhile(
    spoil: Callable[..., DatasetRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = spoil("train", 3)
    real = repair_module._publish

    def late(dataset: Dataset, mended: object) -> DatasetRef:
        table = tmp_path / "withdrawn.csv"
        table.write_text(f"key\n{dataset.index('val').keys[0]}\n")
        edit(ref.url, str(table), delete=True)
        return real(dataset, mended)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(repair_module, "_publish", late)
        with pytest.raises(WorkError, match="somebody else published"):
            repair(ref.url)
    assert repair(ref.url).findings[-1].severity == "note"  # of the photograph that was withdrawn
    assert lost(Dataset.open(ref), Dataset.open(ref.url)) == {
        Dataset.open(ref).index("train").keys[3],
        Dataset.open(ref).index("val").keys[0],
    }


def test_a_store(raw: str) -> None:
    MemoryFileSystem.store.clear()
    before = Dataset.open(ingest(raw, "memory://mended", CONFIG))
    store = MemoryFileSystem()
    one, two = before.shards("train")[:2]
    store.pipe(f"/mended/{one.name}", b"rubbish")
    whole = store.cat_file(f"/mended/{two.name}")
    store.pipe(f"/mended/{two.name}", whole[: len(whole) // 2])
    outcome = repair(before.url)
    assert outcome.findings == ()
    assert store.cat_file(f"/mended/_vit/quarantine/{one.name}") == b"rubbish"
    assert not store.exists(f"/mended/{one.name}")
    assert keys(Dataset.open(ingest(raw, before.url, CONFIG))) == keys(before)
    assert check(before.url, "full") == []


@pytest.fixture
def adopted(data: Dataset, tmp_path: Path) -> Dataset:
    """Tars of others, with a dataset beside them; made of the tars of `toy`."""
    folder = tmp_path / "theirs"
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        for number, shard in enumerate(data.shards(split)):
            shutil.copy(tar(data, shard), folder / split / f"{number:05d}.tar")
    return Dataset.open(ingest(str(folder), str(folder)))


def test_the_index_of_an_adopted_tar_is_made_again(adopted: Dataset) -> None:
    assert check(adopted.url, "full") == []
    before = files(adopted)
    name = first(adopted).index
    (Path(adopted.url) / name).unlink()
    assert repair(adopted.url, dry_run=True).actions
    assert files(adopted).keys() == before.keys() - {name}
    outcome = repair(adopted.url)
    assert (outcome.published, outcome.findings) == (None, ())
    after = files(adopted)
    assert index.decode(after.pop(name)).equals(index.decode(before.pop(name)))
    assert after == before


def test_a_store_that_is_away_loses_no_adopted_tar(adopted: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("the store is away")

    (Path(adopted.url) / first(adopted).index).unlink()
    with monkeypatch.context() as patch:
        patch.setattr("vitcore.data.ingest.adopt_shard._survey", refuse)
        with pytest.raises(WorkError, match="the store is away"):
            repair(adopted.url)
    assert repair(adopted.url).published is None


def test_an_adopted_tar_is_never_touched(adopted: Dataset) -> None:
    path = tar(adopted, first(adopted))
    whole, when = path.read_bytes(), path.stat()
    spoilt = bytearray(whole)
    spoilt[600:700] = bytes(100)  # in the first photograph
    path.write_bytes(spoilt)
    os.utime(path, ns=(when.st_atime_ns, when.st_mtime_ns))  # as a disk rots
    theirs = {name: data for name, data in files(adopted).items() if name.endswith(".tar")}
    outcome = repair(adopted.url)
    assert outcome.published is not None
    assert fit(outcome.findings)
    assert {name: data for name, data in files(adopted).items() if name.endswith(".tar")} == theirs
    repaired = Dataset.open(adopted.url)
    assert lost(adopted, repaired) == {adopted.shard_index(first(adopted)).column("key")[0].as_py()}
    # Adopted again as it is, the tar is looked at, not recalled.
    assert fit(check(ingest(adopted.url, adopted.url, IngestConfig(error_budget=0.1)), "full"))
    path.write_bytes(whole)
    assert ingest(adopted.url, adopted.url) == adopted.ref
    assert check(adopted.url, "full") == []
