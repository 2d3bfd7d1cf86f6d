"""Headers that tarfile takes for its own, saying nothing of who wrote them when."""

import tarfile

import pytest

from vitcore.data.ingest import tar


@pytest.mark.parametrize("name", ["a", "cd7241df969607b1.json", "n" * 100])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 8**11 - 1])
def test_header(name: str, size: int) -> None:
    head = tar.header(name, size)
    assert len(head) == tar.BLOCK
    info = tarfile.TarInfo.frombuf(head, "ascii", "strict")  # refuses a wrong checksum
    assert (info.name, info.size, info.mode, info.isreg()) == (name, size, 0o644, True)
    assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")


@pytest.mark.parametrize(("name", "size"), [("n" * 101, 0), ("a", 8**11), ("ä", 0)])
def test_what_a_header_cannot_hold_is_refused(name: str, size: int) -> None:
    with pytest.raises(ValueError, match=r"ustar|ascii"):
        tar.header(name, size)
