"""Reading and spoiling checkpoints, as tests do it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from vitcore.train.request import TrainRequest


def read_state(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint's folder, whole, whichever ranks wrote which part."""
    files = {path.name: load_file(path) for path in parts(folder)}
    tensors: dict[str, Tensor] = {}
    for name, described in json.loads((folder / "state.json").read_text())["tensors"].items():
        tensor = tensors[name] = torch.full(described["shape"], torch.nan).to(getattr(torch, described["dtype"]))
        for file, offsets, sizes in described["chunks"]:
            box = tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))
            part = name if not any(offsets) else f"{name}[{','.join(map(str, offsets))}]"
            tensor[box] = files[file][part]
    return tensors


def state(request: TrainRequest, step: int) -> dict[str, Tensor]:
    """All tensors of a training's checkpoint at a step."""
    return read_state(Path(request.checkpoints) / f"step-{step:08d}")


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """The same tensors, none of whose values differ by more than the tolerance."""
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def parts(folder: Path) -> list[Path]:
    """The files of a checkpoint that hold tensors."""
    return sorted(folder.glob("*.safetensors"))
