"""Corpora that are folders of photographs.

root/CLASS/*.jpg                    class folders
root/{train,val,test}/CLASS/*.jpg   the same with given splits (or photographs directly below a split)
root/*.jpg                          photographs without labels
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from vitcore import storage
from vitcore.data.corpus.files import Files
from vitcore.data.corpus.listing import SPLITS, Corpus, Reject, listing
from vitcore.data.ingest_config import IngestConfig
from vitcore.errors import RequestError

_COMPANIONS = frozenset(
    {".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".md", ".html", ".xml", ".yaml", ".yml"}
    | {".log", ".ini", ".db", ".py", ".pdf", ".pkl", ".npy", ".npz", ".tar", ".tgz", ".gz", ".zip"}
)


def read_folder(root: str, files: Files, config: IngestConfig) -> Corpus:
    """List a folder of photographs: what is none by its name is left out, the rest is decided by content, later.

    Args:
        root: its URL.
        files: what lies in it.
        config: the settings.

    Raises:
        RequestError: a class folder is empty, or photographs lie beside class folders.
    """
    files = files.only(lambda extension: extension not in _COMPANIONS)
    paths = files.paths
    folders = list(storage.folders(root))
    tops = {path.partition("/")[0] for path in chain(folders, (path for path in paths if "/" in path))}
    split_of = {top: SPLITS[top.lower()] for top in tops if top.lower() in SPLITS}
    given = bool(tops) and split_of.keys() == tops
    depth = 1 if given else 0  # of the class folder
    labelled = config.labels == "auto" and any(path.count("/") > depth for path in paths)
    if labelled:
        _refuse_ambiguous(root, paths, folders, depth)
    columns: dict[str, Sequence[Any]] = {
        "url": [f"{root}/{path}" for path in paths],
        "source": paths,
        "size": files.sizes,
        "stamp": files.stamps,
    }
    if labelled:
        columns["label"] = [path.split("/", depth + 1)[depth] for path in paths]
    if given:
        columns["split"] = [split_of[path.split("/", 1)[0]] if "/" in path else None for path in paths]
    return Corpus(root, ("image", "label") if labelled else ("image",), listing(columns), _misnamed(files))


def _misnamed(files: Files) -> tuple[Reject, ...]:
    return tuple(Reject(path, "its name is not UTF-8") for path in files.misnamed)


def _refuse_ambiguous(root: str, files: Sequence[str], folders: Sequence[str], depth: int) -> None:
    loose = next((path for path in files if path.count("/") <= depth), None)
    if loose is not None:
        raise RequestError(
            f"the source {root} has class folders, but {loose} is in none of them; move it into a class or away"
        )
    filled = {"/".join(path.split("/", depth + 1)[: depth + 1]) for path in files}
    empty = min((folder for folder in folders if folder.count("/") == depth and folder not in filled), default=None)
    if empty is not None:
        raise RequestError(f"the class folder {root}/{empty} holds no images; fill it or remove it")
