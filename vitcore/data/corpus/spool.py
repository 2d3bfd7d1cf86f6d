"""Files that cannot be read by place, brought once into a form that can: Parquet and remote Arrow files as local Arrow
files, compressed tars as plain ones.

A spooled file is named after the file it came from, its size and its stamp, and appears whole or not at all. So it is
found again, by a rerun as by the other machines of a cluster, which must therefore share the folder.
"""

from __future__ import annotations

import gzip
import os
import secrets
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from vitcore import storage
from vitcore.errors import RequestError, WorkError
from vitcore.identity import digest

_PIECE = 1 << 22
_ROWS = 64  # of a Parquet file, held at a time
_GROWTH = 20  # times its size that a compressed tar of photographs may grow to; more is no photographs but a trap
_SLACK = 1 << 26  # bytes any tar may grow to


def folder(scratch: str | None) -> Path:
    """The folder of spooled files: the one that the settings name, or one of the user's own for temporary things.

    Raises:
        RequestError: it is not local, or the temporary one belongs to somebody else.
    """
    if scratch is not None:
        path = storage.local_path(storage.absolute(scratch))
        path.mkdir(parents=True, exist_ok=True)
        return path
    path = Path(tempfile.gettempdir()) / f"vit-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if path.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise RequestError(f"{path} does not belong to this user alone; name a folder with --scratch")
    return path


def arrow(url: str, size: int, stamp: str, scratch: str | None) -> str:
    """Path of a local Arrow file with the rows of a Parquet file, or of an Arrow file that lies in a store.

    Raises:
        RequestError: it cannot be read as what its name says.
        WorkError: it cannot be written.
    """
    if url.endswith(".arrow"):
        return url if storage.is_local(url) else _spooled(url, size, stamp, scratch, ".arrow", _copy)
    return _spooled(url, size, stamp, scratch, ".arrow", _convert)


def plain_tar(url: str, size: int, stamp: str, scratch: str | None) -> str:
    """Path of a local plain tar with what a gzip-compressed one holds.

    Raises:
        RequestError: it is no gzip, or grows as no photographs do.
        WorkError: it cannot be written.
    """
    return _spooled(url, size, stamp, scratch, ".tar", _decompress)


def _spooled(
    url: str, size: int, stamp: str, scratch: str | None, extension: str, fill: Callable[[str, int, IO[bytes]], None]
) -> str:
    target = folder(scratch) / f"{digest([url, size, stamp])}{extension}"
    if target.exists():
        return str(target)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            fill(url, size, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except (pa.ArrowInvalid, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RequestError(f"{url} is damaged or not what its name says: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise WorkError(f"{url} could not be brought to {target.parent}: {error}; name a roomier --scratch") from error
    finally:
        temporary.unlink(missing_ok=True)
    return str(target)


def _convert(url: str, _: int, file: IO[bytes]) -> None:
    with storage.stream(url) as source:
        table = pq.ParquetFile(source, buffer_size=_PIECE)
        with pa.ipc.new_stream(file, table.schema_arrow) as sink:
            for batch in table.iter_batches(batch_size=_ROWS):
                sink.write_batch(batch)


def _copy(url: str, _: int, file: IO[bytes]) -> None:
    with storage.stream(url) as source:
        while piece := source.read(_PIECE):
            file.write(piece)


def _decompress(url: str, size: int, file: IO[bytes]) -> None:
    limit = max(_SLACK, _GROWTH * size)
    with storage.stream(url) as source, gzip.open(source) as plain:
        while piece := plain.read(_PIECE):
            file.write(piece)
            if file.tell() > limit:
                raise RequestError(
                    f"{url} grows more than {_GROWTH}-fold when it is decompressed; it holds no photographs"
                )
