"""Which tars a source means: a folder of them, one, or a pattern (``train/{000..127}.tar``, ``**/*.tar``)."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import PurePosixPath

from vitcore import storage
from vitcore.data.corpus.files import Files, below
from vitcore.data.corpus.listing import SPLITS
from vitcore.data.dataset.manifest import FOLDER
from vitcore.errors import RequestError

PLAIN = ".tar"
COMPRESSED = (".tar.gz", ".tgz")
EXTENSIONS = (PLAIN, *COMPRESSED)
_MOST = 1_000_000  # names that braces may stand for
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})")
_WILD = re.compile(r"\*\*/?|[*?]|\[[^]]+\]")


@dataclass(frozen=True, slots=True)
class Tar:
    """A tar that somebody wrote."""

    url: str
    name: str
    """Relative to the root of its set."""
    size: int
    stamp: str
    """Changes when the file changes."""
    split: str | None
    """What the names of its folders, or its own, say; None: nothing."""

    @property
    def compressed(self) -> bool:
        """Whether its members cannot be read where they lie."""
        return self.name.lower().endswith(COMPRESSED)


@dataclass(frozen=True, slots=True)
class TarSet:
    """The tars of a source."""

    source: str
    """Absolute path, URL or pattern."""
    root: str
    """Folder that all of them lie in."""
    tars: tuple[Tar, ...]
    """In the order of their names."""


def is_tar(name: str) -> bool:
    """Whether a file's name is that of a tar."""
    return name.lower().endswith(EXTENSIONS)


def is_pattern(source: str) -> bool:
    """Whether a source is a pattern and not the name of something that is there."""
    return bool(_BRACES.search(source) or _WILD.search(source)) and is_tar(source) and not storage.exists(source)


def in_folder(root: str, files: Files) -> TarSet:
    """The tars among what lies in a folder."""
    tars = files.only(EXTENSIONS.__contains__)
    found = zip(tars.paths, tars.sizes, tars.stamps, strict=True)
    return TarSet(root, root, tuple(_tar(root, *one) for one in found if not one[0].startswith(f"{FOLDER}/")))


def one(url: str) -> TarSet:
    """A single tar."""
    root, name = url.rsplit("/", 1)
    found = storage.entry(url)
    return TarSet(url, root, (_tar(root, name, found.size, found.stamp),))


def matching(pattern: str) -> TarSet:
    """The tars that a pattern names.

    Raises:
        RequestError: a tar that braces name does not exist, or nothing fits.
    """
    pattern = storage.absolute(pattern)
    root = _constant(pattern)
    wanted = list(expand(pattern[len(root) + 1 :]))
    exact = {name for name in wanted if not _WILD.search(name)}
    shapes = [_shape(name) for name in wanted if _WILD.search(name)]
    tars = in_folder(root, below(root)).tars
    found = tuple(tar for tar in tars if tar.name in exact or any(shape.fullmatch(tar.name) for shape in shapes))
    missing = exact - {tar.name for tar in found}
    if missing:
        first = min(missing)
        raise RequestError(f"{pattern} names {len(missing)} tars that do not exist, among them {root}/{first}")
    if not found:
        raise RequestError(f"no tar fits {pattern}; check the path")
    return TarSet(pattern, root, found)


def expand(pattern: str) -> Iterator[str]:
    """What a pattern with braces stands for: ``{000..127}`` and ``{a,b}``, several of them multiplied.

    Raises:
        RequestError: more names than anybody means.
    """
    parts = _BRACES.split(pattern)  # text, inside of braces, text, …
    total, choices = 1, []
    for number, part in enumerate(parts):
        options = list(_options(part)) if number % 2 else [part]
        total *= len(options)
        if total > _MOST:
            raise RequestError(f"{pattern} stands for more than {_MOST} tars; give their folder")
        choices.append(options)
    return ("".join(chosen) for chosen in product(*choices))


def _options(inside: str) -> Iterable[str]:
    span = _RANGE.fullmatch(inside)
    if not span:
        return inside.split(",")
    first, last = int(span[1]), int(span[2])
    if last - first >= _MOST:
        raise RequestError(f"{{{inside}}} stands for more than {_MOST} tars; give their folder")
    width = len(span[1]) if span[1].startswith("0") or len(span[1]) == len(span[2]) else 0
    return (f"{number:0{width}d}" for number in range(first, last + 1))


def _constant(pattern: str) -> str:
    """The folder above the first part of a path that is a pattern."""
    folders = pattern.split("/")
    first = next(place for place, part in enumerate(folders) if _BRACES.search(part) or _WILD.search(part))
    return "/".join(folders[:first])


def _shape(name: str) -> re.Pattern[str]:
    """A glob as a regular expression: ``*`` and ``?`` stay in their folder, ``**/`` is any number of folders."""
    parts, at = [], 0
    for wild in _WILD.finditer(name):
        parts.append(re.escape(name[at : wild.start()]))
        found = wild[0]
        simple = {"*": "[^/]*", "?": "[^/]", "**/": "(?:.*/)?", "**": ".*"}
        parts.append(simple.get(found) or f"[{_members(found[1:-1])}]")
        at = wild.end()
    return re.compile("".join(parts) + re.escape(name[at:]))


def _members(inside: str) -> str:
    kept = inside.replace("\\", r"\\").replace("[", r"\[")
    return "^" + kept[1:] if kept.startswith("!") else kept.replace("^", r"\^")


def _tar(root: str, name: str, size: int, stamp: str) -> Tar:
    return Tar(storage.join(root, name), name, size, stamp, split_of(name))


def split_of(name: str) -> str | None:
    """The split that a tar's path names: its nearest folder that does, or else the one that its own name does.

    ``train/0001.tar`` and ``birds-validation-0001.tar`` do; a name that says two says nothing.
    """
    folder, file = posixpath.split(name)
    for part in reversed(PurePosixPath(folder).parts):
        if part.lower() in SPLITS:
            return SPLITS[part.lower()]
    said = {SPLITS[word] for word in re.split(r"[-_.]", file.lower()) if word in SPLITS}
    return said.pop() if len(said) == 1 else None
