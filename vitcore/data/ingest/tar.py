"""The tar format, as little of it as a shard needs: headers that say nothing of who wrote them when, and a scan."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import IO, NamedTuple

BLOCK = 512
END = bytes(2 * BLOCK)
"""What closes a tar."""
_LARGEST = 8**11 - 1  # what the size field of a ustar header holds, in octal
# What every header is made of besides name, size and checksum, in order.
_MODE = b"0000644\0" + b"0000000\0" * 2  # mode, owner, group
_TIME = b"00000000000\0"
_KIND = b"\0 " + b"0" + bytes(100) + b"ustar\x0000" + bytes(247)  # end of the checksum; a regular file; no link
_CONSTANT_SUM = sum(_MODE) + sum(_TIME) + sum(_KIND[2:]) + 8 * ord(" ")  # the checksum counts itself as blanks


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int
    """Of its data, in bytes."""
    size: int


def header(name: str, size: int) -> bytes:
    """The ustar header of a member; owner, time and mode are constant, so that equal members give equal tars.

    Args:
        name: at most 100 ASCII characters.
        size: bytes, below 8 GiB.
    """
    encoded = name.encode("ascii")
    if len(encoded) > 100 or size > _LARGEST:
        raise ValueError(f"{name!r} of {size} bytes does not fit a ustar header")
    digits = b"%011o" % size
    checksum = _CONSTANT_SUM + sum(encoded) + sum(digits)
    return b"%b%b%b\0%b%06o%b" % (encoded.ljust(100, b"\0"), _MODE, digits, _TIME, checksum, _KIND)


def padding(size: int) -> bytes:
    """Zeros that fill a member's last block."""
    return bytes(-size % BLOCK)


def scan(file: IO[bytes]) -> Iterator[Member]:
    """Regular files of a tar, ours or anyone's, in order, reading headers only.

    Raises:
        tarfile.TarError: the tar is truncated or damaged.
    """
    with tarfile.open(fileobj=file, mode="r:", errorlevel=2) as tar:
        end = 0
        for info in tar:
            if info.isreg():
                yield Member(info.name, info.offset_data, info.size)
            end = info.offset_data + info.size
        length = file.seek(0, io.SEEK_END)
        if length < end + BLOCK:  # tarfile takes the end of the file for the end of the tar
            raise tarfile.ReadError(f"the tar ends after {length} bytes, its last member needs {end + BLOCK}")
