"""The tensors of a checkpoint in files, for torch.distributed.checkpoint: each rank writes one, none is a pickle.

What is planned (who writes which part, who reads what of it after a change of ranks or of sharding) is planned by
torch; here is how a part becomes bytes and bytes a part. A file is named by the beginning of its SHA-256, so that two
writers can never leave a file that is half the one's and half the other's.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from vitcore import storage


class Described(TypedDict):
    """A tensor of a checkpoint, as its commit describes it in JSON."""

    dtype: str
    """such as ``float32``"""
    shape: list[int]
    """of the whole tensor"""
    chunks: list[tuple[str, list[int], list[int]]]
    """file, offsets in the whole and shape of each part"""


class Damaged(Exception):  # noqa: N818  # what it is, not that it went wrong: an older checkpoint will do
    """A file of a checkpoint is gone, or is not the one that was committed."""


Commit = Callable[[dict[str, str], dict[str, Described]], None]
"""Told the files (name → SHA-256) and tensors (name → `Described`) when all ranks have written."""


class ShardWriter(StorageWriter):
    """Writes this rank's part of a checkpoint to a folder; rank 0 then commits for all."""

    def __init__(self, folder: str, commit: Commit) -> None:
        self._folder, self._commit = folder, commit

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the parts that are this rank's as one file."""
        written: Future[list[WriteResult]] = Future()
        parts = {}
        for item in plan.items:
            part = planner.resolve_data(item)
            assert isinstance(part, torch.Tensor)  # a state holds nothing else
            parts[_key(item.index.fqn, item.index.offset)] = part.detach().cpu().contiguous()
        if not parts:
            written.set_result([])
            return written
        data = save_tensors(parts)
        digest = hashlib.sha256(data).hexdigest()
        name = f"{digest[:16]}.safetensors"
        storage.write(storage.join(self._folder, name), data)
        written.set_result([WriteResult(item.index, 0, (name, digest)) for item in plan.items])
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On rank 0, when all have written: commit."""
        place = {(found.index.fqn, found.index.offset): found.storage_data[0] for rank in results for found in rank}
        tensors = {}
        for name, tensor in metadata.state_dict_metadata.items():
            assert isinstance(tensor, TensorStorageMetadata)
            chunks = [(place[name, c.offsets], list(c.offsets), list(c.sizes)) for c in tensor.chunks]
            dtype = str(tensor.properties.dtype).removeprefix("torch.")
            tensors[name] = Described(dtype=dtype, shape=list(tensor.size), chunks=chunks)
        self._commit(dict(found.storage_data for rank in results for found in rank), tensors)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """One writer writes one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up: a folder appears with its first file."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Torch's plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Torch's plans as they are."""
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Never chosen by name."""
        return False


class ShardReader(StorageReader):
    """Reads from a folder what a commit described, whatever ranks wrote it.

    Raises:
        Damaged: in `read_data`, where a file is missing or another.
    """

    def __init__(self, folder: str, files: Mapping[str, str], tensors: Mapping[str, Described]) -> None:
        self._folder, self._files, self._tensors = folder, files, tensors

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The commit's description as torch's."""
        described: dict[str, STORAGE_TYPES] = {}
        place = {}
        for name, tensor in self._tensors.items():
            chunks = []
            for file, offsets, sizes in tensor["chunks"]:
                chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
                place[MetadataIndex(name, offsets)] = file
            dtype = getattr(torch, tensor["dtype"])
            described[name] = TensorStorageMetadata(TensorProperties(dtype), torch.Size(tensor["shape"]), chunks)
        return Metadata(described, storage_data=place)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Remember which part lies in which file."""
        self._place = metadata.storage_data

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy what is planned into place, a file at a time."""
        wanted: dict[str, list[ReadItem]] = defaultdict(list)
        for item in plan.items:
            wanted[self._place[item.storage_index]].append(item)
        for file, items in wanted.items():
            parts = load_tensors(self._read(file))
            for item in items:
                box = tuple(
                    slice(start, start + length)
                    for start, length in zip(item.storage_offsets, item.lengths, strict=True)
                )
                part = parts[_key(item.storage_index.fqn, item.storage_index.offset)][box]
                target = planner.resolve_tensor(item).detach()
                target.copy_(part)
                planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read(self, file: str) -> bytes:
        url = storage.join(self._folder, file)
        try:
            data = storage.read(url)
        except FileNotFoundError:
            raise Damaged(f"{url} is gone") from None
        if hashlib.sha256(data).hexdigest() != self._files[file]:
            raise Damaged(f"{url} is not the file that was written")
        return data

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """One reader reads one checkpoint."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Torch's plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Torch's plans as they are."""
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Never chosen by name."""
        return False


def _key(name: str, offset: Sequence[int] | None) -> str:
    """Name of a part inside its file: the tensor's, and where the part begins unless that is at its beginning."""
    return name if not offset or not any(offset) else f"{name}[{','.join(map(str, offset))}]"
