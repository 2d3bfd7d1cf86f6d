"""A hub's local cache, filled with files, and the hub itself away."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import safetensors.torch

Put = Callable[[str, Mapping[str, Any]], Path]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Puts files of a repository into the cache: trees as JSON, state dicts as safetensors. The hub is away."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def put(repository: str, files: Mapping[str, Any]) -> Path:
        root = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        revision = "0123456789abcdef0123456789abcdef01234567"
        folder = root / "snapshots" / revision
        folder.mkdir(parents=True, exist_ok=True)
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / "main").write_text(revision)
        for name, content in files.items():
            if name.endswith(".json"):
                (folder / name).write_text(json.dumps(content))
            else:
                owned = {key: tensor.detach().clone().contiguous() for key, tensor in content.items()}
                safetensors.torch.save_file(owned, folder / name)
        return folder

    return put
