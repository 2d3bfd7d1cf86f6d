"""Checkpoints that are either whole or absent, wherever the processes are killed.

    <url>/attempt.json                        who may commit: the newest attempt at this training
    <url>/step-00000120/0f3a….safetensors     weights, optimiser moments, averaged weights; one file a rank
    <url>/step-00000120/state.json            scalars, and SHA-256 of every file above; written last: the commit

No pickle is written or read. A folder without a readable `state.json`, or one of whose files does not match its hash,
is no checkpoint: the next older one is used. Any number of ranks, sharded or not, reads what any other number wrote.
"""

from __future__ import annotations

import json
import secrets
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as load_planned
from torch.distributed.checkpoint.state_dict_saver import save as save_planned

from vitcore import storage
from vitcore.errors import RequestError, WorkError
from vitcore.train.checkpoint.progress import Progress
from vitcore.train.checkpoint.shards import Damaged, Described, ShardReader, ShardWriter
from vitcore.world import World

FORMAT = 3
_PREFIX = "step-"
_MODEL = "model-"
_ATTEMPT = "attempt.json"

warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # said although it was asked for


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed checkpoint; whether its files are still what they were is found out when it is read."""

    name: str
    progress: Progress
    files: dict[str, str]
    """name → SHA-256"""
    tensors: dict[str, Described]


class CheckpointStore:
    """The checkpoints of one training under one URL. Methods marked collective are called by all ranks together."""

    def __init__(self, url: str, identity: str, keep: int, world: World | None = None) -> None:
        self.url = url
        self._identity, self._keep = identity, keep
        self.world = world or World()
        self._group = self.world.beside()
        self._token = ""

    def claim(self) -> int:
        """Become the attempt that may commit; all before it may no longer. Collective; the number of the attempt.

        Raises:
            WorkError: several started at the same moment, and another was last.
        """
        number = self.world.broadcast_from_main(self._claim)
        return int(number)

    def checkpoints(self) -> list[Checkpoint]:
        """What is committed, newest first; the same on every rank. Collective.

        Raises:
            RequestError: the folder holds checkpoints of another training, or of another release.
        """
        found: list[Checkpoint] = self.world.broadcast_from_main(self._committed)
        return found

    def load(self, checkpoint: Checkpoint, targets: dict[str, Tensor]) -> bool:
        """Read a checkpoint into tensors of the right shapes, sharded as they are. Collective.

        Returns:
            False where it is damaged; then some of the targets may have been overwritten.
        """
        reader = ShardReader(storage.join(self.url, checkpoint.name), checkpoint.files, checkpoint.tensors)
        try:
            load_planned(targets, storage_reader=reader, process_group=self._group, no_dist=not self.world.distributed)
        except CheckpointException as error:
            cause = _cause(error)
            if isinstance(cause, Damaged):
                return False
            raise cause from error
        return True

    def save(self, progress: Progress, tensors: dict[str, Tensor]) -> None:
        """Commit a checkpoint, then drop what the keep policy no longer wants. Collective.

        Args:
            progress: the scalars; ``progress.step`` names the checkpoint.
            tensors: what this rank has to write, by flat name: whole tensors that no other rank gives, or sharded ones.

        Raises:
            OSError: a rank could not write.
            WorkError: another attempt at this training has begun.
        """
        folder = storage.join(self.url, f"{_PREFIX}{progress.step:08d}")
        writer = ShardWriter(folder, partial(self._commit, folder, progress))
        try:
            save_planned(tensors, storage_writer=writer, process_group=self._group, no_dist=not self.world.distributed)
        except CheckpointException as error:
            raise _cause(error) from error

    def tidy(self, step: int) -> None:
        """Before going on from `step` (0: from the start): drop what a killed writer left unfinished. Rank 0 alone.

        Whatever is newer than the newest whole checkpoint is none, and would count against the keep policy.
        """
        for name in self._folders():
            if int(name.removeprefix(_PREFIX)) > step:
                storage.remove(storage.join(self.url, name))
        for name in storage.names(self.url):
            if name.startswith((_PREFIX, _MODEL)):
                storage.sweep(storage.join(self.url, name))

    def model_url(self, step: int) -> str:
        """Where the best model of validation step `step` lies."""
        return storage.join(self.url, f"{_MODEL}{step:08d}")

    def close(self) -> None:
        """Give up what the collectives needed. Collective."""
        self.world.leave(self._group)

    def _claim(self) -> int:
        url = storage.join(self.url, _ATTEMPT)
        tag = storage.tag(url)
        number = 1 + (0 if tag is None else int(_json(url).get("attempt", 0)))
        self._token = secrets.token_hex(8)
        content = json.dumps({"attempt": number, "token": self._token}).encode()
        if not storage.replace(url, content, tag):
            raise WorkError(f"another process began the training in {self.url} at the same moment; it goes on there")
        return number

    def _check_claim(self) -> None:
        """A process that was thought dead (a node cut off, a stopped process) must not commit when it comes back."""
        now = _json(storage.join(self.url, _ATTEMPT))
        if self._token and now.get("token") != self._token:
            raise WorkError(
                f"attempt {now.get('attempt', '?')} at the training in {self.url} has begun; this older one stops"
            )

    def _commit(self, folder: str, progress: Progress, files: dict[str, str], tensors: dict[str, Described]) -> None:
        self._check_claim()
        tree = {
            "format": FORMAT,
            "identity": self._identity,
            "progress": asdict(progress),
            "files": files,
            "tensors": tensors,
        }
        storage.write(storage.join(folder, "state.json"), json.dumps(tree, sort_keys=True).encode())
        self._collect(progress.best_step)

    def _committed(self) -> list[Checkpoint]:
        found = []
        for name in reversed(self._folders()):
            tree = self._tree(name)
            if tree is None:
                continue
            if tree["format"] != FORMAT:
                remedy = "upgrade" if tree["format"] > FORMAT else "train it anew, with --fresh"
                raise RequestError(
                    f"{self.url}/{name} has format {tree['format']}; this release reads {FORMAT}: {remedy}"
                )
            if tree["identity"] != self._identity:
                raise RequestError(
                    f"{self.url} holds checkpoints of {tree['identity']}, not of {self._identity}; give another folder"
                )
            found.append(Checkpoint(name, Progress(**tree["progress"]), tree["files"], tree["tensors"]))
        return found

    def _folders(self) -> list[str]:
        return [name for name in storage.names(self.url) if name.startswith(_PREFIX)]

    def _tree(self, name: str) -> dict[str, Any] | None:
        tree = _json(storage.join(self.url, name, "state.json"))
        return tree if "format" in tree else None

    def _collect(self, best_step: int) -> None:
        """Drop old checkpoints and models. A model is dropped once no kept checkpoint can name it."""
        for name in self._folders()[: -self._keep]:
            storage.remove(storage.join(self.url, name))
        named = {best_step}
        for name in self._folders():
            tree = self._tree(name)
            if tree is not None:
                named.add(int(tree["progress"]["best_step"]))
        for name in storage.names(self.url):
            if name.startswith(_MODEL) and int(name.removeprefix(_MODEL)) not in named:
                storage.remove(storage.join(self.url, name))


def _json(url: str) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none, or half of one."""
    try:
        tree = json.loads(storage.read(url))
    except (FileNotFoundError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _cause(error: CheckpointException) -> BaseException:
    """What went wrong on a rank, where torch says on which ranks something did; damage last, since it has a remedy."""
    causes = [failure[0] for _, failure in sorted(error.failures.items())]
    return min(causes, key=lambda cause: isinstance(cause, Damaged))
