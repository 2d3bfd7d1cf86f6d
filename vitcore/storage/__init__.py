"""Files by URL: a local path or any fsspec URL (``s3://bucket/key``), with publication that is all or nothing.

Credentials come from the standard environment of each store and are never part of a URL here. What a store breaks off
is tried again with back-off; what remains is an `OSError` of one sentence, whatever the store's client raised.
"""

from __future__ import annotations

from vitcore.storage.exclusive import replace, tag
from vitcore.storage.files import (
    exists,
    is_file,
    modified,
    move,
    names,
    put,
    read,
    read_range,
    remove,
    size,
    sweep,
    write,
)
from vitcore.storage.listing import Entry, entry, folders, walk
from vitcore.storage.stream import stream
from vitcore.storage.urls import absolute, filesystem, is_local, join, local_path, scheme

__all__ = [
    "Entry",
    "absolute",
    "entry",
    "exists",
    "filesystem",
    "folders",
    "is_file",
    "is_local",
    "join",
    "local_path",
    "modified",
    "move",
    "names",
    "put",
    "read",
    "read_range",
    "remove",
    "replace",
    "scheme",
    "size",
    "stream",
    "sweep",
    "tag",
    "walk",
    "write",
]
