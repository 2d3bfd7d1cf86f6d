"""What lies in a raw corpus: its photographs with labels, captions, groups and given splits, before any is read.

    root/CLASS/*.jpg                    class folders
    root/{train,val,test}/CLASS/*.jpg   the same with given splits (or photographs directly below a split)
    root/*.jpg                          photographs without labels
    table.csv | .tsv | .parquet | .jsonl  a row a photograph, or several rows with a caption each

All of it from a local path or any store that `vitcore.storage` reads. Which files are photographs is decided by their
content, later; here only well-known companions (text, tables, hidden files) are left out by name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from vitcore import storage
from vitcore.data.corpus import SPLITS, Corpus, Item, Reject, class_order
from vitcore.data.ingest_config import TableConfig
from vitcore.data.tables import TABLES, read_table
from vitcore.errors import RequestError

_COMPANIONS = frozenset(
    {".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".md", ".html", ".xml", ".yaml", ".yml"}
    | {".log", ".ini", ".db", ".py", ".pdf", ".pkl", ".npy", ".npz"}
)


def read_corpus(source: str, table: TableConfig | None = None) -> Corpus:
    """List a corpus; the kind is seen from what is there.

    Raises:
        RequestError: nothing is there, no photographs, an empty class, or a table without the columns asked for.
    """
    url = storage.absolute(source)
    if not storage.exists(url):
        raise RequestError(f"the source {source} does not exist; give a folder of images or a .csv, .parquet or .jsonl")
    if PurePosixPath(url).suffix.lower() in TABLES:
        corpus = read_table(url, table or TableConfig())
    elif storage.is_local(url) and storage.local_path(url).is_file():
        known = ", ".join(TABLES)
        raise RequestError(f"the source {source} is a file of an unknown kind; give a folder or a table ({known})")
    else:
        corpus = _read_folder(url)
    if not corpus.items:
        raise RequestError(f"the source {source} holds no images; give a folder or table that does")
    return corpus


def _read_folder(root: str) -> Corpus:
    found, folders = _walk(root)
    files = [path for path in found if _utf8(path) == path]
    rejects = tuple(Reject(_utf8(path), "its name is not UTF-8") for path in found if _utf8(path) != path)
    tops = {path.split("/", 1)[0] for path in [*folders, *(file for file in files if "/" in file)]}
    split_of = {top: SPLITS[top.lower()] for top in tops if top.lower() in SPLITS}
    given = bool(tops) and split_of.keys() == tops
    depth = 1 if given else 0  # of the class folder
    labelled = any(path.count("/") > depth for path in files)
    if labelled:
        _refuse_ambiguous(root, files, folders, depth)
    items = []
    for path in files:
        parts = path.split("/")
        label = parts[depth] if labelled else None
        split = split_of[parts[0]] if given and len(parts) > 1 else None
        items.append(Item(url=f"{root}/{path}", source=path, label=label, split=split))
    classes = class_order(item.label for item in items if item.label is not None)
    return Corpus(root, ("image", "label") if labelled else ("image",), classes, tuple(items), rejects)


def _refuse_ambiguous(root: str, files: Sequence[str], folders: Sequence[str], depth: int) -> None:
    loose = [path for path in files if path.count("/") <= depth]
    if loose:
        raise RequestError(
            f"the source {root} has class folders, but {loose[0]} is in none of them; move it into a class or away"
        )
    filled = {"/".join(path.split("/")[: depth + 1]) for path in files}
    empty = sorted(folder for folder in folders if folder.count("/") == depth and folder not in filled)
    if empty:
        raise RequestError(f"the class folder {root}/{empty[0]} holds no images; fill it or remove it")


def _walk(root: str) -> tuple[list[str], list[str]]:
    """Files that may be photographs and all folders below `root`, as relative paths in spelling order."""
    if not storage.is_local(root):
        fs, base = storage.filesystem(root)
        found = [str(path)[len(base) :].strip("/") for path in fs.find(base)]
        return sorted(path for path in found if path and _candidate(path)), []
    files: list[str] = []
    folders: list[str] = []

    def visit(folder: Path, prefix: str, above: frozenset[str]) -> None:
        here = os.path.realpath(folder)
        if here in above:
            return  # a link back up
        with os.scandir(folder) as entries:
            for entry in entries:
                path = prefix + entry.name
                if entry.is_dir():
                    if not entry.name.startswith("."):
                        folders.append(path)
                        visit(Path(entry.path), path + "/", above | {here})
                elif _candidate(path):
                    files.append(path)

    visit(storage.local_path(root), "", frozenset())
    return sorted(files), sorted(folders)


def _utf8(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def _candidate(path: str) -> bool:
    pure = PurePosixPath(path)
    return pure.suffix.lower() not in _COMPANIONS and not any(part.startswith(".") for part in pure.parts)
