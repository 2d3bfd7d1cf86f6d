"""Tars that others wrote, adopted where they lie: not a byte of theirs changes, every byte of theirs is found."""

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import webdataset
from PIL import Image

from tests.vitcore.data.tars import labelled, picture, write_img2dataset, write_members, write_webdataset
from vitcore.data.corpus.sources import read_corpus, recognise
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.ingest import adopt_shard as step
from vitcore.data.ingest.adopt import Adopted, IndexJob, adopt, index_shard
from vitcore.data.ingest.adopt_shard import AdoptJob, adopt_shard
from vitcore.data.ingest.ingest import ingest
from vitcore.data.ingest.mode import Mode
from vitcore.data.ingest.parallel import threads
from vitcore.data.ingest.plan import assign
from vitcore.data.ingest_config import IngestConfig, SplitFractions, TarConfig
from vitcore.data.reading.reader import Reader
from vitcore.errors import RequestError, WorkError

TRAIN = IngestConfig(splits=SplitFractions(train=1, val=0, test=0))


def state(root: Path) -> dict[str, tuple[str, int]]:
    """Everything below a folder but what adoption may write: content and time of change."""
    ours = (root / "_vit", root / "dataset.json")
    paths = [p for p in root.rglob("*") if p.is_file() and not any(p == one or one in p.parents for one in ours)]
    return {str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in paths}


def adopted(source: str, url: Path, config: IngestConfig = TRAIN, **more: Any) -> Adopted:
    tars = recognise(source, config).tars
    assert tars is not None
    return adopt(tars, str(url), config, mapper=threads(2), **more)


def photographs(dataset: Dataset, split: str) -> dict[str, bytes]:
    with Reader(dataset, split, verify="all") as reader:
        return {str(source): bytes(reader.read(n)) for n, source in enumerate(reader.index.sources)}


def test_shard_writers_tars_in_place(tmp_path: Path) -> None:
    with webdataset.ShardWriter(str(tmp_path / "train-%04d.tar"), maxcount=10, verbose=0) as writer:
        for sample in labelled(range(25), classes=4):
            writer.write(sample)
    write_webdataset(tmp_path / "val" / "0.tar", labelled(range(25, 31), classes=4))
    (tmp_path / "README.md").write_text("theirs")
    before = state(tmp_path)
    dataset = Dataset.open(ingest(str(tmp_path), str(tmp_path)))
    assert state(tmp_path) == before, "not a byte of theirs, not a file beside them"
    assert dataset.manifest.fields == ("image", "label")
    assert dataset.manifest.classes == ("0", "1", "2", "3")
    assert {name: info.samples for name, info in dataset.manifest.splits.items()} == {"train": 25, "val": 6}
    assert dataset.manifest.splits["train"].class_counts == (7, 6, 6, 6)
    assert {shard.name for shard in dataset.shards("train")} == {f"train-{n:04d}.tar" for n in range(3)}
    found = photographs(dataset, "train")
    assert found == {f"train-{n // 10:04d}.tar/{n:06d}.jpg": picture(n) for n in range(25)}
    index = dataset.index("train")
    assert [int(label) for label in index.labels] == [n % 4 for n in range(25)]
    row = dataset.shard_index(dataset.shards("train")[0]).to_pylist()[3]
    with Image.open(io.BytesIO(picture(3))) as image:
        assert (row["width"], row["height"]) == image.size
    assert row["origin"] == row["hash"] == hashlib.sha256(picture(3)).digest()
    again = ingest(str(tmp_path), str(tmp_path))
    assert again == dataset.ref


def test_adopted_elsewhere_the_shards_are_named_in_full(tmp_path: Path) -> None:
    write_webdataset(tmp_path / "theirs" / "0.tar", labelled(range(5)))
    dataset = Dataset.open(ingest(str(tmp_path / "theirs" / "{0..0}.tar"), str(tmp_path / "ours"), TRAIN))
    assert [shard.name for shard in dataset.shards("train")] == [str(tmp_path / "theirs" / "0.tar")]
    assert list(photographs(dataset, "train").values()) == [picture(n) for n in range(5)]
    assert {path.name for path in (tmp_path / "theirs").iterdir()} == {"0.tar"}


def test_a_sample_is_read_as_webdataset_reads_it(tmp_path: Path) -> None:
    path = write_webdataset(tmp_path / "0.tar", labelled(range(8)))
    theirs = {sample["__key__"]: sample["jpg"] for sample in webdataset.WebDataset(str(path), shardshuffle=False)}
    dataset = Dataset.open(ingest(str(tmp_path), str(tmp_path), TRAIN))
    ours = photographs(dataset, "train")
    assert {name.split("/")[1].removesuffix(".jpg"): data for name, data in ours.items()} == theirs


def test_img2dataset_output_in_place(tmp_path: Path) -> None:
    write_img2dataset(tmp_path, 0, ["success", "failed_to_download", "success"])
    write_img2dataset(tmp_path, 1, ["success", "success", "failed_to_resize"])
    before = state(tmp_path)
    result = adopted(str(tmp_path), tmp_path)
    assert state(tmp_path) == before
    assert (result.fields, result.samples, result.rejects) == (("image", "captions"), 4, ())
    assert result.absent == {"img2dataset: failed_to_download": 1, "img2dataset: failed_to_resize": 1}
    dataset = Dataset.open(ingest(str(tmp_path), str(tmp_path), TRAIN))
    assert dataset.index("train").captions(3) == ("words of 000010001",)
    extra = json.loads(dataset.shard_index(dataset.shards("train")[1]).to_pylist()[1]["extra"])
    assert extra == {"url": "http://x/000010001", "similarity": 1.25}


def test_labels_that_are_names_count_the_same_in_every_tar(tmp_path: Path) -> None:
    for number, names in enumerate((["wasp", "ant"], ["bee", "wasp"])):
        samples = [{"__key__": f"{n}", "jpg": picture(10 * number + n), "cls": name} for n, name in enumerate(names)]
        write_webdataset(tmp_path / f"{number}.tar", samples)
    dataset = Dataset.open(ingest(str(tmp_path), str(tmp_path), TRAIN))
    assert dataset.manifest.classes == ("ant", "bee", "wasp")
    assert dataset.index("train").labels.tolist() == [2, 0, 1, 2]


def test_class_names_from_a_file_need_no_second_look_at_the_tars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_webdataset(tmp_path / "0.tar", labelled(range(6)))
    assert adopted(str(tmp_path), tmp_path).classes == ("0", "1", "2")
    monkeypatch.setattr(step, "_survey", None)
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\n")
    config = TRAIN.model_copy(update={"tar": TarConfig(classes=str(tmp_path / "names.txt"))})
    result = adopted(str(tmp_path), tmp_path, config)
    assert result.classes == ("ant", "bee", "cat", "dog")
    assert result.added[0].class_counts == (2, 2, 2, 0)
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    result = adopted(str(tmp_path), tmp_path, config)
    assert {reject.reason for reject in result.rejects} == {"its label is not among the classes"}
    assert adopted(str(tmp_path), tmp_path, TRAIN.model_copy(update={"labels": "none"})).fields == ("image",)


def test_hashed_splits_share_a_tar(tmp_path: Path) -> None:
    write_webdataset(tmp_path / "0.tar", labelled(range(60)))
    config = IngestConfig(splits=SplitFractions(train=0.6, val=0.2, test=0.2))
    dataset = Dataset.open(ingest(str(tmp_path), str(tmp_path), config))
    assert set(dataset.manifest.splits) == {"train", "val", "test"}
    found: dict[str, bytes] = {}
    for split in dataset.manifest.splits:
        assert [shard.name for shard in dataset.shards(split)] == ["0.tar"]
        part = photographs(dataset, split)
        for data in part.values():
            assert assign(hashlib.sha256(data).hexdigest(), config.splits) == split
        assert not part.keys() & found.keys()
        found |= part
    assert found == {f"0.tar/{n:06d}.jpg": picture(n) for n in range(60)}


def test_groups_stay_together(tmp_path: Path) -> None:
    members = []
    for n in range(40):
        members += [(f"{n:02d}.jpg", picture(n)), (f"{n:02d}.json", json.dumps({"patient": n % 5}).encode())]
    write_members(tmp_path / "0.tar", members)
    config = IngestConfig(splits=SplitFractions(train=0.5, val=0.5, test=0), tar=TarConfig(group="json.patient"))
    dataset = Dataset.open(ingest(str(tmp_path), str(tmp_path), config))
    groups = [set(dataset.index(split).groups) for split in dataset.manifest.splits]
    assert len(groups) == 2
    assert not groups[0] & groups[1]


def test_what_cannot_be_shown_is_left_out(tmp_path: Path) -> None:
    jpeg = picture(0)
    samples = [
        {"__key__": "a", "jpg": jpeg, "cls": 0},
        {"__key__": "b", "jpg": jpeg[:-300], "cls": 0},
        {"__key__": "c", "jpg": b"words", "cls": 0},
        {"__key__": "d", "jpg": b"", "cls": 0},
        {"__key__": "e", "jpg": picture(1, "GIF"), "cls": 0},
        {"__key__": "f", "jpg": picture(2)},
    ]
    write_webdataset(tmp_path / "0.tar", samples)
    result = adopted(str(tmp_path), tmp_path)
    assert result.samples == 2, "a, and the GIF that calls itself JPEG"
    assert {reject.source: reject.reason for reject in result.rejects} == {
        "0.tar/b": "truncated or corrupt",
        "0.tar/c": "not an image",
        "0.tar/d": "empty file",
        "0.tar/f": "no label",
    }
    with pytest.raises(WorkError, match="error budget"):
        ingest(str(tmp_path), str(tmp_path), TRAIN)
    assert not (tmp_path / "dataset.json").exists()


def test_header_only_adoption_says_the_same_of_whole_photographs(tmp_path: Path) -> None:
    write_webdataset(tmp_path / "0.tar", labelled(range(9)))
    full = adopted(str(tmp_path), tmp_path / "full")
    quick = adopted(str(tmp_path), tmp_path / "quick", TRAIN.model_copy(update={"verify": "header"}))
    assert [one.shard.index_digest for one in quick.added] == [one.shard.index_digest for one in full.added]
    assert quick.added[0].moments.pixels == 0
    assert full.added[0].moments.pixels > 0


def test_the_moments_of_a_split_are_those_of_its_photographs(tmp_path: Path) -> None:
    write_webdataset(tmp_path / "0.tar", labelled(range(30)))
    whole = adopted(str(tmp_path), tmp_path).added[0].moments
    parts = adopted(str(tmp_path), tmp_path, IngestConfig(splits=SplitFractions(train=0.5, val=0.5, test=0))).added
    assert len(parts) == 2
    assert parts[0].moments + parts[1].moments == whole


def test_damaged_tars_yield_and_skip_all_they_hold(tmp_path: Path) -> None:
    root = tmp_path / "tars"
    path = write_webdataset(root / "0.tar", labelled(range(30)))
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        sizes = {info.name: info.size for info in tar}
    rng = random.Random(5)
    for round in range(6):
        damaged = bytearray(whole)
        for _ in range(4):
            damaged[rng.randrange(len(damaged) - 10240)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        result = adopted(str(root), tmp_path / f"ours{round}")
        assert result.samples + len(result.rejects) == 30
        assert result.samples >= 30 - 8
        for split in result.added:
            index = (tmp_path / f"ours{round}" / split.shard.index).read_bytes()
            for row in step.pq.read_table(io.BytesIO(index)).to_pylist():
                assert row["size"] == sizes[f"{row['key']}.jpg"]
                assert hashlib.sha256(damaged[row["offset"] : row["offset"] + row["size"]]).digest() == row["hash"]
    path.write_bytes(whole[: len(whole) // 2])
    result = adopted(str(root), tmp_path / "cut")
    assert 12 < result.samples < 16
    assert [reject.reason for reject in result.rejects] == ["the tar ends too early"]


def test_a_night_later_only_new_tars_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_webdataset(tmp_path / "0.tar", labelled(range(5)))
    first = Dataset.open(ingest(str(tmp_path), str(tmp_path), TRAIN))
    write_webdataset(tmp_path / "1.tar", labelled(range(5, 9)))
    read = []
    survey = step._survey
    monkeypatch.setattr(step, "_survey", lambda job, path: (read.append(job.tar.name), survey(job, path))[1])
    second = Dataset.open(ingest(str(tmp_path), str(tmp_path), TRAIN))
    assert read == ["1.tar"]
    assert second.manifest.splits["train"].samples == 9
    assert len(photographs(first, "train")) == 5, "the version before stays readable"
    write_webdataset(tmp_path / "0.tar", labelled(range(20, 23)))
    third = Dataset.open(ingest(str(tmp_path), str(tmp_path), TRAIN))
    assert read == ["1.tar", "0.tar"], "a tar that changed is read again"
    assert third.manifest.splits["train"].samples == 7


def test_appended_tars_keep_the_classes(tmp_path: Path) -> None:
    write_webdataset(tmp_path / "a" / "0.tar", labelled(range(6)))
    write_webdataset(tmp_path / "b" / "0.tar", [{"__key__": "x", "jpg": picture(9), "cls": 1}])
    ours = str(tmp_path / "ours")
    ingest(str(tmp_path / "a"), ours, TRAIN)
    dataset = Dataset.open(ingest(str(tmp_path / "b"), ours, TRAIN, mode=Mode(append=True)))
    assert dataset.manifest.classes == ("0", "1", "2")
    assert sorted(dataset.index("train").labels.tolist()) == [0, 0, 1, 1, 1, 2, 2]
    write_webdataset(tmp_path / "c" / "0.tar", [{"__key__": "x", "jpg": picture(9), "cls": "ant"}])
    result = adopted(str(tmp_path / "c"), Path(ours), before=("0", "1", "2"))
    assert result.classes == ("0", "1", "2", "ant")
    with pytest.raises(RequestError, match="name the classes alike"):
        adopted(str(tmp_path / "a"), Path(ours), before=("ant", "bee"))


def test_refusals(tmp_path: Path) -> None:
    write_webdataset(tmp_path / "theirs" / "0.tar", labelled(range(2)))
    (tmp_path / "theirs" / "dataset.json").write_text('{"name": "of somebody else"}')
    with pytest.raises(RequestError, match="not the pointer of a dataset"):
        ingest(str(tmp_path / "theirs"), str(tmp_path / "theirs"), TRAIN)
    assert {path.name for path in (tmp_path / "theirs").iterdir()} == {"0.tar", "dataset.json"}
    with pytest.raises(RequestError, match="readers of memory://x cannot find them"):
        ingest(str(tmp_path / "theirs"), "memory://x", TRAIN)
    (tmp_path / "theirs" / "0.tar").rename(tmp_path / "theirs" / "0.tar.gz")
    with pytest.raises(RequestError, match=r"compressed.*--tars reshard"):
        ingest(str(tmp_path / "theirs"), str(tmp_path / "ours"), TRAIN)
    write_webdataset(tmp_path / "ids" / "0.tar", [{"__key__": "x", "jpg": picture(0), "cls": 10**9}])
    with pytest.raises(RequestError, match="numbers no class"):
        adopted(str(tmp_path / "ids"), tmp_path / "ours")


def sent(value: Any) -> Any:
    """As it arrives in another process."""
    return pickle.loads(pickle.dumps(value))


def test_jobs_cross_processes(tmp_path: Path) -> None:
    write_webdataset(tmp_path / "0.tar", labelled(range(4)))
    tars = recognise(str(tmp_path)).tars
    assert tars is not None
    job = AdoptJob(str(tmp_path), tars.tars[0], TRAIN)
    shard = sent(adopt_shard(sent(job)))
    found, rejects = sent(index_shard(sent(IndexJob(job, shard, ("image",), 0, None))))
    assert (shard.samples, shard.labels, rejects) == (4, ("0", "1", "2"), [])
    assert found[0].shard.checksum == hashlib.sha256((tmp_path / "0.tar").read_bytes()).hexdigest()


def _adopt_and_die(root: str, delay: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, delay)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    ingest(root, root, TRAIN)


def test_killed_anywhere_the_rerun_gives_the_same(tmp_path: Path) -> None:
    for number in range(4):
        write_webdataset(tmp_path / "whole" / f"{number}.tar", labelled(range(number * 10, number * 10 + 10)))
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    expected = ingest(str(tmp_path / "whole"), str(tmp_path / "whole"), TRAIN).digest
    root = tmp_path / "killed"
    before = state(root)
    context = multiprocessing.get_context("fork")
    for round in range(8):
        process = context.Process(target=_adopt_and_die, args=(str(root), 0.004 * 2**round))
        process.start()
        process.join(60)
        if (root / "dataset.json").exists():
            assert Dataset.open(str(root)).digest == expected, "what is published is whole"
    assert state(root) == before
    assert ingest(str(root), str(root), TRAIN).digest == expected


def test_memory_does_not_grow_with_the_tar(tmp_path: Path) -> None:
    filler = random.Random(0).randbytes(1 << 20)
    members = [(f"{n:03d}.{kind}", data) for n in range(60) for kind, data in (("jpg", picture(n)), ("bin", filler))]
    path = write_members(tmp_path / "0.tar", members)
    job = AdoptJob(str(tmp_path / "ours"), recognise(str(path)).tars.tars[0], TRAIN)
    tracemalloc.start()
    try:
        assert adopt_shard(job).samples == 60
        assert tracemalloc.get_traced_memory()[1] < 24 << 20, "of a tar of 60 MB"
    finally:
        tracemalloc.stop()


def test_a_dataset_of_ours_is_a_corpus(tmp_path: Path) -> None:
    for label in ("ant", "bee"):
        (tmp_path / "raw" / label).mkdir(parents=True)
        for n in range(6):
            (tmp_path / "raw" / label / f"{n}.jpg").write_bytes(picture(n + 10 * (label == "bee")))
    first = Dataset.open(ingest(str(tmp_path / "raw"), str(tmp_path / "one")))
    corpus = read_corpus(str(tmp_path / "one"))
    assert corpus.fields == ("image", "label")
    assert sorted(corpus.listing.column("source").to_pylist()) == sorted(
        f"{c}/{n}.jpg" for c in ("ant", "bee") for n in range(6)
    )
    second = Dataset.open(ingest(str(tmp_path / "one"), str(tmp_path / "two")))
    assert second.manifest.classes == ("ant", "bee")
    for split in first.manifest.splits:
        assert photographs(first, split) == photographs(second, split)


def test_resharded_tars_hold_the_same_photographs(tmp_path: Path) -> None:
    write_webdataset(tmp_path / "theirs" / "train" / "0.tar", labelled(range(12)))
    config = TRAIN.model_copy(update={"tars": "reshard"})
    dataset = Dataset.open(ingest(str(tmp_path / "theirs"), str(tmp_path / "ours"), config))
    assert photographs(dataset, "train") == {f"train/0.tar/{n:06d}.jpg": picture(n) for n in range(12)}
    assert dataset.manifest.classes == ("0", "1", "2")
