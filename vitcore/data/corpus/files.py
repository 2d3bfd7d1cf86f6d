"""The files below a folder, by column: hundreds of thousands of them are listed without an object each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vitcore import storage


@dataclass(frozen=True, slots=True)
class Files:
    """Files of a folder, in the order of their paths; all columns have the same length."""

    paths: list[str]
    """Relative to the folder."""
    sizes: list[int]
    """Bytes."""
    stamps: list[str]
    """Change when a file changes."""
    extensions: list[str]
    """In lower case, with the dot; empty where there is none. ``.tar.gz`` is one."""
    misnamed: tuple[str, ...] = ()
    """Files whose names are not UTF-8, as they can be shown."""

    def only(self, keep: Callable[[str], bool]) -> Files:
        """The files whose extension `keep` takes."""
        wanted = {extension for extension in set(self.extensions) if keep(extension)}
        rows = [row for row, extension in enumerate(self.extensions) if extension in wanted]
        return _take(self, rows) if len(rows) < len(self.paths) else self


def below(url: str) -> Files:
    """List a folder at any depth, without what is hidden."""
    files, misnamed = Files([], [], [], []), []
    for path, size, stamp, utf8 in storage.walk(url):
        if not utf8:
            misnamed.append(path)
            continue
        files.paths.append(path)
        files.sizes.append(size)
        files.stamps.append(stamp)
        files.extensions.append(_extension(path))
    paths = files.paths
    ordered = _take(files, sorted(range(len(paths)), key=paths.__getitem__))
    return Files(ordered.paths, ordered.sizes, ordered.stamps, ordered.extensions, tuple(misnamed))


def _take(files: Files, rows: list[int]) -> Files:
    return Files(
        [files.paths[row] for row in rows],
        [files.sizes[row] for row in rows],
        [files.stamps[row] for row in rows],
        [files.extensions[row] for row in rows],
        files.misnamed,
    )


def _extension(path: str) -> str:
    dot = path.rfind(".")
    extension = path[dot:].lower() if dot > 0 else ""
    if extension == ".gz" and path[:dot].lower().endswith(".tar"):
        return ".tar.gz"
    return "" if "/" in extension else extension
