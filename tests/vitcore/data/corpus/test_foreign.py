"""Samples of tars that others wrote: well-formed, odd, hostile and damaged ones."""

import gzip
import io
import json
import os
import random
import subprocess
import tarfile
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.vitcore.data.tars import labelled, picture, write_img2dataset, write_members, write_webdataset
from vitcore import storage
from vitcore.data.corpus import spool, tarwalk
from vitcore.data.corpus.foreign import scan, split_name
from vitcore.data.corpus.img2dataset import not_downloaded, unlisted
from vitcore.data.corpus.places import Place, fetch
from vitcore.data.corpus.sources import read_corpus
from vitcore.data.corpus.tarsets import Tar, expand, matching, split_of
from vitcore.data.ingest_config import IngestConfig, TarConfig
from vitcore.errors import RequestError


def tar_of(path: Path | str) -> Tar:
    url = str(path)
    return Tar(url, url.rsplit("/", 1)[1], storage.size(url), "1", None)


def scanned(path: Path, **config: object) -> tuple[list[dict], dict[str, str]]:
    table, rejects = scan(tar_of(path), TarConfig(**config))
    return table.to_pylist(), {reject.source: reject.reason for reject in rejects}


def test_webdataset_tars_give_their_members_exact_bytes(tmp_path: Path) -> None:
    samples = labelled(range(20))
    path = write_webdataset(tmp_path / "a.tar", samples)
    rows, rejects = scanned(path)
    assert not rejects
    assert [row["key"] for row in rows] == [sample["__key__"] for sample in samples]
    assert [row["class"] for row in rows] == [str(sample["cls"]) for sample in samples]
    for row, sample in zip(rows, samples, strict=True):
        assert fetch(Place(str(path), row["offset"], row["offset"] + row["size"])) == sample["jpg"]


def test_keys_follow_webdatasets_rule() -> None:
    assert split_name("a.b/c.seg.png") == ("a.b/c", "seg.png")
    assert split_name("./c.jpg") == ("./c", "jpg")
    assert split_name("a/.hidden") is None
    assert split_name("a/README") is None


def test_members_say_what_the_sample_is(tmp_path: Path) -> None:
    about = {"label": "ant", "caption": "one", "patient": 7, "part": "dev", "score": 0.5, "bad": float("nan")}
    members = [
        ("x/1.PNG", picture(1, "PNG")),
        ("x/1.json", json.dumps(about).encode()),
        ("x/2.mask.png", b"mask"),
        ("x/2.jpeg", picture(2)),
        ("x/2.webp", b"other"),
        ("x/2.txt", b" words\n"),
        ("x/2.cls", b"-1"),
    ]
    rows, rejects = scanned(write_members(tmp_path / "a.tar", members), group="json.patient", split="json.part")
    assert not rejects
    first, second = rows
    assert (first["key"], first["extension"], first["class"]) == ("x/1", "PNG", "ant")
    assert (first["captions"], first["group"], first["split"]) == (["one"], "7", "val")
    assert json.loads(first["extra"]) == {"patient": 7, "part": "dev", "score": 0.5}
    assert (second["extension"], second["class"], second["captions"]) == ("jpeg", None, ["words"])


def test_settings_choose_members(tmp_path: Path) -> None:
    members = [("1.jpg", b"a"), ("1.seg.png", b"b"), ("1.id", b"9"), ("1.json", b'{"words": ["x", "y", "x", " "]}')]
    config = {"image": ("seg.png",), "label": "id", "caption": "json.words"}
    rows, _ = scanned(write_members(tmp_path / "a.tar", members), **config)
    assert [(row["extension"], row["class"], row["captions"]) for row in rows] == [("seg.png", "9", ["x", "y"])]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path: Path, format: int) -> None:
    long = "d" * 90 + "/" + "é" * 80
    rows, rejects = scanned(write_members(tmp_path / "a.tar", [(f"{long}.jpg", b"x" * 700)], format))
    assert not rejects
    assert [row["key"] for row in rows] == [long]


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def test_hostile_members_are_left_out_with_a_reason(tmp_path: Path) -> None:
    members = [
        ("/etc/a.jpg", b"x"),
        ("../b.jpg", b"x"),
        (link("c.jpg", tarfile.SYMTYPE), b""),
        (link("d.jpg", tarfile.CHRTYPE), b""),
        ("e.jpg", b"x"),
        ("e.jpg", b"y"),
        ("f.jpg", b"x"),
        ("g.txt", b"words"),
        ("f.txt", b"later"),
        ("h.jpg", b"x"),
        ("h.json", b"[" * 100_000),
        ("i\udcff.jpg", b"x"),
        ("j.jpg", b"x"),
        ("j.txt", b"\xff\xfe"),
        ("k.jpg", b"x"),
        ("k.json", b'{"captions": ["\\ud800"]}'),
        ("l.jpg", b"x"),
        ("l.txt", b"x" * 20_000),
        ("m.jpg", b"x"),
        ("m.txt", b" \x00\x07\n"),
    ]
    rows, rejects = scanned(write_members(tmp_path / "a.tar", members, tarfile.GNU_FORMAT))
    assert [row["key"] for row in rows] == ["f", "m"]
    assert rows[1]["captions"] == []
    assert rejects == {
        "a.tar//etc/a": "its name leaves the tar",
        "a.tar/../b": "its name leaves the tar",
        "a.tar/c": "a member is a link, a device or a sparse file",
        "a.tar/d": "a member is a link, a device or a sparse file",
        "a.tar/e": "it has a member twice",
        "a.tar/g": "no image",
        "a.tar/f": "its key came before in the tar",
        "a.tar/h": "its .json cannot be read",
        "a.tar/i\\udcff": "its name is not UTF-8",
        "a.tar/j": "its caption is not UTF-8",
        "a.tar/k": "its caption is not UTF-8",
        "a.tar/l": "its caption has more than 16384 characters",
    }


def test_sparse_files_are_no_images(tmp_path: Path) -> None:
    sparse = tarfile.TarInfo("a.jpg")
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.jpg"}
    rows, rejects = scanned(write_members(tmp_path / "a.tar", [(sparse, b"x"), ("b.jpg", b"y")]))
    assert [row["key"] for row in rows] == ["b"]
    assert rejects == {"a.tar/a": "a member is a link, a device or a sparse file"}


def test_gnu_tars_own_sparse_files(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        for _ in range(40):  # more extents than its first header lists
            file.write(b"x" * 512)
            file.seek(1 << 16, os.SEEK_CUR)
        file.truncate()
    (tmp_path / "b.jpg").write_bytes(picture(1))
    command = ["tar", "-C", str(tmp_path), "--format=gnu", "-S", "--hole-detection=raw", "-cf"]
    subprocess.run([*command, str(tmp_path / "0.tar"), "a.jpg", "b.jpg"], check=True)
    if (tmp_path / "0.tar").stat().st_size > 1 << 20:
        pytest.skip("this file system keeps no holes")
    rows, rejects = scanned(tmp_path / "0.tar")
    assert [fetch(Place(str(tmp_path / "0.tar"), r["offset"], r["offset"] + r["size"])) for r in rows] == [picture(1)]
    assert rejects == {"0.tar/a": "a member is a link, a device or a sparse file"}


def test_a_truncated_tar_keeps_its_whole_samples(tmp_path: Path) -> None:
    path = write_webdataset(tmp_path / "a.tar", labelled(range(6)))
    whole = path.read_bytes()
    ends = [row["offset"] for row in scanned(path)[0]]
    for cut in [10, 512, ends[2] - 700, ends[2] + 5, ends[5] + 600, len(whole) - 10240]:
        path.write_bytes(whole[:cut])
        rows, rejects = scanned(path)
        kept = [row["key"] for row in rows]
        assert kept == [f"{n:06d}" for n in range(len(kept))]
        assert rejects, cut
        assert set(rejects.values()) == {"the tar ends too early"}
        members = tarfile_members(path)
        assert all(f"{key}.jpg" in members and f"{key}.cls" in members for key in kept)


def tarfile_members(path: Path) -> set[str]:
    """Names of the members whose data is all there, by Python's own reader."""
    names, size = set(), path.stat().st_size
    try:
        with tarfile.open(path) as tar:
            for info in tar:
                if info.offset_data + info.size <= size:
                    names.add(info.name)
    except tarfile.ReadError:
        pass
    return names


def test_flipped_bits_in_headers_lose_only_what_they_touch(tmp_path: Path) -> None:
    path = write_webdataset(tmp_path / "a.tar", labelled(range(12)))
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        headers = [at for info in tar for at in (info.offset, info.offset_data - 512)]  # pax's own, the member's own
    rng = random.Random(3)
    for header in headers:
        at = header + rng.randrange(0, 100)
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        rows, rejects = scanned(path)
        names = [f"a.tar/{row['key']}" for row in rows]
        assert 0 < len(rejects) <= 2
        assert set(rejects.values()) == {"a header beside it is damaged"}
        assert sorted([*names, *rejects]) == [f"a.tar/{n:06d}" for n in range(12)], "each is taken or left out, once"
        assert all(row["class"] is not None for row in rows), "no sample lost its label in silence"


def test_two_tars_in_one_file_and_rubbish(tmp_path: Path) -> None:
    one = write_webdataset(tmp_path / "a.tar", labelled(range(3))).read_bytes()
    two = write_webdataset(tmp_path / "b.tar", labelled(range(3, 6))).read_bytes()
    (tmp_path / "a.tar").write_bytes(one + two)
    rows, rejects = scanned(tmp_path / "a.tar")
    assert len(rows) + len(rejects) == 6
    (tmp_path / "a.tar").write_bytes(random.Random(1).randbytes(5000))
    rows, rejects = scanned(tmp_path / "a.tar")
    assert not rows
    assert set(rejects) == {"a.tar"}


def test_a_compressed_tar_says_so_or_is_spooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = write_webdataset(tmp_path / "tars" / "a.tar", labelled(range(4)))
    data = plain.read_bytes()
    plain.write_bytes(gzip.compress(data))
    with pytest.raises(RequestError, match="compressed"):
        scanned(plain)
    plain.rename(plain.with_name("a.tar.gz"))
    config = IngestConfig(scratch=str(tmp_path / "scratch"))
    corpus = read_corpus(str(tmp_path / "tars"), config)
    assert [row["source"] for row in corpus.listing.to_pylist()] == [f"a.tar.gz/{n:06d}.jpg" for n in range(4)]
    first = corpus.listing.to_pylist()[0]
    assert fetch(Place(first["url"], first["start"], first["stop"])) == picture(0)
    monkeypatch.setattr(spool, "_SLACK", 0)
    (tmp_path / "tars" / "b.tgz").write_bytes(gzip.compress(bytes(1 << 23)))
    with pytest.raises(RequestError, match="20-fold"):
        read_corpus(str(tmp_path / "tars"), config)
    assert len(list((tmp_path / "scratch").iterdir())) == 1, "nothing half-written stays"


def test_img2dataset_output(tmp_path: Path) -> None:
    path = write_img2dataset(tmp_path, 3, ["success", "failed_to_download", "success", "success"], lost=frozenset({2}))
    table, rejects = scan(tar_of(path), TarConfig())
    rows = table.to_pylist()
    assert [row["captions"] for row in rows] == [["words of 000030000"], ["words of 000030003"]]
    assert json.loads(rows[0]["extra"]) == {"url": "http://x/000030000", "similarity": 0.25}
    missing = unlisted(tar_of(path), table.column("key").to_pylist(), rejects)
    assert [(reject.source, reject.reason) for reject in missing] == [
        ("00003.tar/000030002", "listed beside the tar, but not in it")
    ]
    assert not_downloaded(tar_of(path)) == {"img2dataset: failed_to_download": 1}


def test_a_corpus_of_tars(tmp_path: Path) -> None:
    write_webdataset(tmp_path / "train" / "0.tar", labelled(range(4)))
    write_webdataset(tmp_path / "train" / "1.tar", labelled(range(4, 8)))
    write_webdataset(tmp_path / "set-validation-00.tar", [*labelled([8, 9]), {"__key__": "z", "jpg": picture(10)}])
    (tmp_path / "README").write_text("words")
    corpus = read_corpus(str(tmp_path), IngestConfig(tars="reshard"))
    assert corpus.fields == ("image", "label")
    assert [(r.source, r.reason) for r in corpus.rejects] == [("set-validation-00.tar/z.jpg", "no label")]
    rows = corpus.listing.to_pylist()
    assert [row["split"] for row in rows] == ["val"] * 2 + ["train"] * 8
    assert len({row["source"] for row in rows}) == 10
    for row in rows:
        number = int(row["source"].rsplit("/", 1)[1].removesuffix(".jpg"))
        assert row["label"] == str(number % 3)
        assert fetch(Place(row["url"], row["start"], row["stop"], row["column"])) == picture(number)
    assert read_corpus(str(tmp_path), IngestConfig(labels="none")).fields == ("image",)
    assert len(read_corpus(str(tmp_path / "train" / "{0..1}.tar"))) == 8
    assert len(read_corpus(str(tmp_path / "**" / "*.tar"))) == 10
    assert len(read_corpus(str(tmp_path / "train" / "1.tar"))) == 4


def test_class_names_come_from_a_file(tmp_path: Path) -> None:
    write_webdataset(tmp_path / "tars" / "0.tar", labelled(range(4)))
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\n")
    corpus = read_corpus(str(tmp_path / "tars"), IngestConfig(tar=TarConfig(classes=str(names))))
    assert corpus.listing.column("label").to_pylist() == ["ant", "bee", "ant"]
    assert [r.reason for r in corpus.rejects] == ["its label is not among the classes"]
    names = tmp_path / "names.json"
    for text in ('["ant","bee","cat"]', '{"2":"cat","0":"ant","1":"bee"}', '{"ant":0,"bee":1,"cat":2}'):
        names.write_text(text)
        corpus = read_corpus(str(tmp_path / "tars"), IngestConfig(tar=TarConfig(classes=str(names))))
        assert corpus.listing.column("label").to_pylist() == ["ant", "bee", "cat", "ant"]
    names.write_text('{"ant": 0, "bee": 2}')
    with pytest.raises(RequestError, match="count from 0"):
        read_corpus(str(tmp_path / "tars"), IngestConfig(tar=TarConfig(classes=str(names))))


def test_tars_in_a_store_are_walked_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarwalk, "_PIECE", 1000)
    path = write_webdataset(tmp_path / "a.tar", labelled(range(9)))
    MemoryFileSystem().pipe("/tars/a.tar", path.read_bytes())
    local, remote = scan(tar_of(path), TarConfig()), scan(tar_of("memory://tars/a.tar"), TarConfig())
    assert remote[0].equals(local[0])
    assert remote[1] == local[1] == []
    listed = read_corpus("memory://tars").listing.to_pylist()
    assert [fetch(Place(row["url"], row["start"], row["stop"])) for row in listed] == [picture(n) for n in range(9)]


def test_patterns() -> None:
    assert list(expand("a-{08..11}.tar")) == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert list(expand("{a,b}/{0..1}.tar")) == ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]
    with pytest.raises(RequestError, match="more than"):
        expand("{0..9999999999}.tar")
    assert split_of("x/train/0.tar") == "train"
    assert split_of("birds-validation-0001.tar") == "val"
    assert split_of("train-and-test.tar") is None


def test_patterns_name_what_is_there(tmp_path: Path) -> None:
    write_webdataset(tmp_path / "a" / "0.tar", labelled(range(1)))
    with pytest.raises(RequestError, match=r"names 1 tars that do not exist, among them .*/a/1.tar"):
        matching(str(tmp_path / "a" / "{0..1}.tar"))
    with pytest.raises(RequestError, match="no tar fits"):
        matching(str(tmp_path / "b*.tar"))
    (tmp_path / "a" / "loose.jpg").write_bytes(b"x")
    with pytest.raises(RequestError, match="photographs beside them"):
        read_corpus(str(tmp_path))


@pytest.mark.parametrize("source", ["pipe:cat x.tar", "pipe:cat {0..3}.tar", "pipe:cat *.tar", "ssh://host/{0..1}.tar"])
def test_shells_are_refused(source: str) -> None:
    with pytest.raises(RequestError, match="URLs are not read"):
        read_corpus(source)


def test_a_header_that_lies_about_its_size(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size = 1 << 60
        buffer.write(info.tobuf(tarfile.GNU_FORMAT))
        del tar
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    rows, rejects = scanned(tmp_path / "a.tar")
    assert not rows
    assert rejects == {"a.tar": "the tar ends too early"}
