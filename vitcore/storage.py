"""Files by URL: a local path or any fsspec URL (``s3://bucket/key``), with publication that is all or nothing.

Credentials come from the standard environment of each store and are never part of a URL here.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
from fsspec import AbstractFileSystem

from vitcore.errors import RequestError

_SCHEMES = frozenset({"file", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https", "memory"})


def scheme(url: str) -> str:
    """The URL's scheme; ``file`` for a plain path.

    Raises:
        RequestError: a scheme that is not a store (``pipe:`` would run a shell), or credentials inside the URL.
    """
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", url)
    name = match.group(1).lower() if match else "file"
    if name not in _SCHEMES:
        raise RequestError(f"{name}: URLs are not read; give a local path or one of {', '.join(sorted(_SCHEMES))}")
    if name != "file" and urlsplit(url).password:
        raise RequestError("a URL must not carry a password; set the store's own environment variables instead")
    return name


def is_local(url: str) -> bool:
    """Whether the URL names a file of this machine."""
    return scheme(url) == "file"


def local_path(url: str) -> Path:
    """The path a local URL names.

    Raises:
        RequestError: the URL is remote.
    """
    if not is_local(url):
        raise RequestError(f"{url} is not a local path")
    return Path(url.removeprefix("file://"))


def absolute(url: str) -> str:
    """The URL as seen from any working directory."""
    return str(local_path(url).expanduser().absolute()) if is_local(url) else url.rstrip("/")


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The fsspec filesystem of a URL and the path inside it."""
    scheme(url)
    fs, path = fsspec.core.url_to_fs(absolute(url))
    return fs, str(path)


def join(url: str, *parts: str) -> str:
    """`parts` below `url`; an absolute last part (a shard that lies elsewhere) stands for itself."""
    last = parts[-1]
    if last.startswith("/") or "://" in last:
        return last
    return "/".join([url.rstrip("/"), *parts])


def exists(url: str) -> bool:
    """Whether a file or folder is there."""
    if is_local(url):
        return local_path(url).exists()
    fs, path = filesystem(url)
    return bool(fs.exists(path))


def size(url: str) -> int:
    """Bytes of a file."""
    if is_local(url):
        return local_path(url).stat().st_size
    fs, path = filesystem(url)
    return int(fs.size(path))


def names(url: str) -> list[str]:
    """Sorted names directly below a folder; empty when there is none."""
    if is_local(url):
        folder = local_path(url)
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    fs, path = filesystem(url)
    fs.invalidate_cache(path)
    try:
        found = fs.ls(path, detail=False)
    except FileNotFoundError:
        return []
    return sorted({str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in found} - {path.rsplit("/", 1)[-1]})


def read(url: str) -> bytes:
    """A whole file.

    Raises:
        FileNotFoundError: there is none.
    """
    if is_local(url):
        return local_path(url).read_bytes()
    fs, path = filesystem(url)
    return bytes(fs.cat_file(path))


def read_range(url: str, start: int, stop: int) -> bytes:
    """Bytes `start` to `stop` of a file."""
    if is_local(url):
        with local_path(url).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)
    fs, path = filesystem(url)
    return bytes(fs.cat_file(path, start=start, end=stop))


def write(url: str, data: bytes) -> None:
    """Publish a file: readers see the old one or the whole new one, never a part, whatever is killed when."""
    if is_local(url):
        path = local_path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return
    fs, path_in_store = filesystem(url)
    fs.pipe_file(path_in_store, data)  # one PUT (or a completed multipart upload): objects appear whole


def put(local: Path, url: str) -> None:
    """Publish a finished local file under `url` (moved when `url` is local, uploaded when not)."""
    if is_local(url):
        target = local_path(url)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(target)
        shutil.move(local, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
        return
    fs, path = filesystem(url)
    fs.put_file(str(local), path)
    local.unlink()


def remove(url: str) -> None:
    """Delete a file or a folder; nothing happens where there is none."""
    if is_local(url):
        path = local_path(url)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        return
    fs, path_in_store = filesystem(url)
    if fs.exists(path_in_store):
        fs.rm(path_in_store, recursive=True)


def sweep(url: str) -> None:
    """Delete what killed writers left directly below a folder. For the folder's one writer only."""
    if is_local(url):  # elsewhere an object appears whole or not at all
        for path in local_path(url).glob(".*.tmp"):
            path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
