"""Reading, publishing and deleting files."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from vitcore.storage import s3
from vitcore.storage.retry import patiently, status_of
from vitcore.storage.urls import filesystem, is_local, local_path


def exists(url: str) -> bool:
    """Whether a file or folder is there."""
    if is_local(url):
        return local_path(url).exists()
    try:
        _info(url, "looked up")
    except FileNotFoundError:
        return False
    return True


def is_file(url: str) -> bool:
    """Whether a file, and no folder, is there."""
    if is_local(url):
        return local_path(url).is_file()
    try:
        return _info(url, "looked up").get("type") == "file"
    except FileNotFoundError:
        return False


def modified(url: str) -> float | None:
    """When a file was changed, in seconds since 1970; None where the store does not say.

    Raises:
        FileNotFoundError: there is none.
    """
    if is_local(url):
        return local_path(url).stat().st_mtime
    fs, path = filesystem(url)
    try:
        return float(patiently(url, "looked up", lambda: fs.modified(path)).timestamp())
    except NotImplementedError:
        return None


def size(url: str) -> int:
    """Bytes of a file.

    Raises:
        FileNotFoundError: there is none.
    """
    if is_local(url):
        return local_path(url).stat().st_size
    return int(_info(url, "looked up")["size"])


def names(url: str) -> list[str]:
    """Sorted names directly below a folder; empty when there is none."""
    if is_local(url):
        folder = local_path(url)
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    fs, path = filesystem(url)
    try:
        found = patiently(url, "listed", lambda: fs.ls(path, detail=False))
    except FileNotFoundError:
        return []
    below = {str(entry).rstrip("/") for entry in found} - {path.rstrip("/")}
    return sorted(entry.rsplit("/", 1)[-1] for entry in below)


def read(url: str) -> bytes:
    """A whole file.

    Raises:
        FileNotFoundError: there is none.
    """
    if is_local(url):
        with open(local_path(url) if not url.startswith("/") else url, "rb", buffering=0) as file:  # noqa: PTH123
            return file.read()  # a Path costs as much as reading a small photograph
    fs, path = filesystem(url)
    return bytes(patiently(url, "read", lambda: fs.cat_file(path)))


def read_range(url: str, start: int, stop: int) -> bytes:
    """Bytes `start` to `stop` of a file; fewer where it ends before.

    Raises:
        FileNotFoundError: there is none.
    """
    if is_local(url):
        with local_path(url).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)
    if stop <= start:
        return b""
    fs, path = filesystem(url)

    def ask() -> bytes:
        try:
            return bytes(fs.cat_file(path, start=start, end=stop))
        except OSError as error:
            if status_of(error) == 416:  # the file ends before `start`
                return b""
            raise

    return patiently(url, "read", ask)


def write(url: str, data: bytes) -> None:
    """Publish a file: readers see the old one or the whole new one, never a part, whatever is killed when."""
    if is_local(url):
        publish(local_path(url), data)
        return
    fs, path = filesystem(url)
    options = s3.upload_options(len(data)) if s3.is_s3(url) else {}
    # One PUT, or an upload in parts that is completed last: objects appear whole.
    patiently(url, "written", lambda: fs.pipe_file(path, data, **options))


def put(local: Path, url: str) -> None:
    """Publish a finished local file under `url` (moved when `url` is local, uploaded when not)."""
    if is_local(url):
        target = local_path(url)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(target)
        try:
            shutil.move(local, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            _rename(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return
    fs, path = filesystem(url)
    options = s3.upload_options(local.stat().st_size) if s3.is_s3(url) else {}
    patiently(url, "written", lambda: fs.put_file(str(local), path, **options))
    local.unlink()


def publish(path: Path, data: bytes) -> None:
    """Replace a local file at once by a whole new one that lasts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def move(url: str, to: str) -> None:
    """Give a file another place in the same store; killed in between, it may be at both."""
    if is_local(url):
        target = local_path(to)
        target.parent.mkdir(parents=True, exist_ok=True)
        local_path(url).replace(target)
        return
    fs, path = filesystem(url)
    patiently(url, "copied", lambda: fs.copy(path, filesystem(to)[1]))
    remove(url)


def remove(url: str) -> None:
    """Delete a file or a folder; nothing happens where there is none."""
    if is_local(url):
        path = local_path(url)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    elif s3.is_s3(url):
        s3.remove(url)
    else:
        fs, path_in_store = filesystem(url)
        try:
            patiently(url, "removed", lambda: fs.rm(path_in_store, recursive=True))
        except FileNotFoundError:
            return


def sweep(url: str) -> None:
    """Delete what killed writers left directly below a folder. For the folder's one writer only."""
    if is_local(url):  # elsewhere an object appears whole or not at all
        for path in local_path(url).glob(".*.tmp"):
            path.unlink(missing_ok=True)


def _info(url: str, done: str) -> dict[str, Any]:
    fs, path = filesystem(url)
    found: dict[str, Any] = patiently(url, done, lambda: fs.info(path))
    return found


def _rename(temporary: Path, target: Path) -> None:
    """Give a file that is on the disk its name, and bring the name to the disk."""
    temporary.replace(target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
