"""Reading and spoiling checkpoints, as tests do it."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor


def read_state(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint's folder, whichever rank wrote them; none of them sharded."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found = load_file(path)
        assert not found.keys() & tensors.keys()
        tensors |= found
    return tensors


def parts(folder: Path) -> list[Path]:
    """The files of a checkpoint that hold tensors."""
    return sorted(folder.glob("*.safetensors"))
