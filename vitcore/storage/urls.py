"""What a URL names: a local path, or a place in a store and the client that reaches it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import fsspec.asyn
from fsspec import AbstractFileSystem

from vitcore.errors import RequestError

_SCHEMES = frozenset({"file", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https", "memory"})

# fsspec forgets its clients in a forked child. A client collected there closes its sockets through the event loop of
# the parent, whose epoll both share: the parent then waits for its own answers in vain. So no client is ever collected.
_clients: dict[int, AbstractFileSystem] = {}

# What fsspec resets by itself in a forked child leaves the lock of its event loop as it was, held or not.
os.register_at_fork(after_in_child=fsspec.asyn.reset_lock)


def scheme(url: str) -> str:
    """The URL's scheme; ``file`` for a plain path.

    Raises:
        RequestError: a scheme that is not a store (``pipe:`` would run a shell), or credentials inside the URL.
    """
    if url.startswith("/"):  # asked for every photograph
        return "file"
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


def join(url: str, *parts: str) -> str:
    """`parts` below `url`; an absolute last part (a shard that lies elsewhere) stands for itself."""
    last = parts[-1]
    if last.startswith("/") or "://" in last:
        return last
    return "/".join([url.rstrip("/"), *parts])


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The fsspec filesystem of a URL and the path inside it.

    It lists anew whenever asked: other processes write to the same store. Chains of filesystems (``a::b``) are none.

    Raises:
        RequestError: the URL is not one of a store, or the package that reaches this store is not installed.
    """
    name = scheme(url)
    url = absolute(url)
    if not is_local(url):
        url = name + url[len(name) :]
    try:
        kind = fsspec.get_filesystem_class(name)
    except ImportError as missing:
        raise RequestError(f"{name}: URLs need another package: {missing}") from None
    options = kind._get_kwargs_from_urls(url)
    fs = fsspec.filesystem(name, **options, use_listings_cache=False)
    if fs.async_impl:
        _clients[id(fs)] = fs
    return fs, str(kind._strip_protocol(url))
