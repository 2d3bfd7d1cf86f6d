"""Checkpoints that are either whole or absent, wherever the process is killed.

    <url>/step-00000120/state.safetensors    weights, optimiser moments, averaged weights
    <url>/step-00000120/state.json           scalars and the SHA-256 of the file above; written last: the commit

No pickle is written or read. A folder without a readable `state.json`, or whose tensors do not match their hash, is no
checkpoint: the next older one is used.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from vitcore import storage
from vitcore.errors import RequestError

FORMAT = 2
_PREFIX = "step-"
_MODEL = "model-"


@dataclass(slots=True)
class Progress:
    """The scalars of a training's state. Sample order and randomness follow from `step` alone."""

    step: int = 0
    """Optimiser steps done."""
    skipped: list[int] = field(default_factory=list)
    """Steps whose update was dropped."""
    bad_samples: int = 0
    """Unreadable samples met so far."""
    best_step: int = 0
    """Step of the best model so far; 0: none yet."""
    best_metrics: dict[str, float] = field(default_factory=dict)
    """Validation metrics of the best model."""


class CheckpointStore:
    """The checkpoints of one training under one URL. Only rank 0 writes."""

    def __init__(self, url: str, identity: str, keep: int) -> None:
        self.url = url
        self._identity = identity
        self._keep = keep

    def save(self, progress: Progress, tensors: dict[str, Tensor]) -> None:
        """Commit a checkpoint, then drop what the keep policy no longer wants.

        Args:
            progress: the scalars; ``progress.step`` names the checkpoint.
            tensors: everything else, by flat name.
        """
        folder = storage.join(self.url, f"{_PREFIX}{progress.step:08d}")
        data = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        storage.write(storage.join(folder, "state.safetensors"), data)
        commit = {
            "format": FORMAT,
            "identity": self._identity,
            "sha256": hashlib.sha256(data).hexdigest(),
            "progress": asdict(progress),
        }
        storage.write(storage.join(folder, "state.json"), json.dumps(commit, indent=1).encode())
        self._collect(progress.best_step)

    def newest(self) -> tuple[Progress, dict[str, Tensor]] | None:
        """The newest checkpoint that is whole, or None.

        Raises:
            RequestError: the folder holds checkpoints of another training, or of a newer release.
        """
        for name in reversed(self._folders()):
            commit = self._commit(name)
            if commit is None:
                continue
            if commit["format"] != FORMAT:
                remedy = "upgrade" if commit["format"] > FORMAT else "train it anew, with --fresh"
                raise RequestError(
                    f"{self.url}/{name} has format {commit['format']}; this release reads {FORMAT}: {remedy}"
                )
            if commit["identity"] != self._identity:
                raise RequestError(
                    f"{self.url} holds checkpoints of {commit['identity']}, not of {self._identity}; "
                    "give another folder"
                )
            try:
                data = storage.read(storage.join(self.url, name, "state.safetensors"))
            except FileNotFoundError:  # it was being deleted
                continue
            if hashlib.sha256(data).hexdigest() == commit["sha256"]:
                return Progress(**commit["progress"]), load_tensors(data)
        return None

    def tidy(self, step: int) -> None:
        """Before going on from `step` (0: from the start): drop what a killed writer left unfinished.

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

    def _folders(self) -> list[str]:
        return [name for name in storage.names(self.url) if name.startswith(_PREFIX)]

    def _commit(self, name: str) -> dict[str, Any] | None:
        try:
            commit = json.loads(storage.read(storage.join(self.url, name, "state.json")))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return commit if isinstance(commit, dict) and "format" in commit else None

    def _collect(self, best_step: int) -> None:
        """Drop old checkpoints and models. A model is dropped once no kept checkpoint can name it."""
        for name in self._folders()[: -self._keep]:
            storage.remove(storage.join(self.url, name))
        named = {best_step}
        for name in self._folders():
            commit = self._commit(name)
            if commit is not None:
                named.add(int(commit["progress"]["best_step"]))
        for name in storage.names(self.url):
            if name.startswith(_MODEL) and int(name.removeprefix(_MODEL)) not in named:
                storage.remove(storage.join(self.url, name))
