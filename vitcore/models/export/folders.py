"""Folders of five formats, each written whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors.torch
from torch import Tensor

from vitcore.errors import RequestError
from vitcore.models.asked import Asked
from vitcore.models.clip import Clip
from vitcore.models.cnn import TIMM, Cnn
from vitcore.models.export.onnx import write_onnx
from vitcore.models.export.preparation import for_timm, for_transformers
from vitcore.models.export.tokenizer import write_tokenizer
from vitcore.models.interop.foreign import Foreign
from vitcore.models.interop.hf import to_hf
from vitcore.models.interop.open_clip import to_open_clip
from vitcore.models.interop.timm import to_timm
from vitcore.models.pretrained import Pretrained, save_pretrained

Format = Literal["safetensors", "timm", "hf", "open_clip", "onnx"]
FORMATS: tuple[Format, ...] = get_args(Format)


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    folder: Path
    """Where."""
    files: tuple[str, ...]
    """Names of the files in it."""
    use: str
    """A line of Python that loads it."""


def export(pretrained: Pretrained, folder: Path, fmt: Format) -> Exported:
    """Write a model into a new folder, all of it or nothing.

    =============== ===================================================================================================
    ``safetensors`` our own folder, as `save_pretrained` writes it
    ``timm``        ``config.json`` and ``model.safetensors`` as timm's hub has them
    ``hf``          ``config.json``, ``model.safetensors`` and ``preprocessor_config.json`` of Hugging Face's
                    transformers; of a CLIP the tokenizer too
    ``open_clip``   ``open_clip_config.json`` and ``open_clip_model.safetensors``
    ``onnx``        ``model.onnx``; of a CLIP ``image.onnx`` and ``text.onnx``; see `vitcore.models.export.onnx`
    =============== ===================================================================================================

    Args:
        pretrained: the model and its card: class names and image preparation go along.
        folder: a path that is new or an empty folder.
        fmt: one of `FORMATS`.
    Raises:
        RequestError: the format cannot hold the model (the sentence says why), its package is missing, or the folder
            holds something.
    """
    if isinstance(pretrained.model, Asked):
        raise RequestError(f"{pretrained.model.config.name} is only asked: export it where it was made")
    folder = folder.absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise RequestError(f"{folder} is there already; give a new folder, or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _WRITERS[fmt](pretrained, unfinished)
        unfinished.chmod(0o755)  # temporary folders are for their owner alone
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Exported(folder, tuple(sorted(path.name for path in folder.iterdir())), _use(pretrained, folder, fmt))


def _to_safetensors(pretrained: Pretrained, folder: Path) -> None:
    save_pretrained(folder, pretrained.model, pretrained.card)


def _to_timm(pretrained: Pretrained, folder: Path) -> None:
    model, card = pretrained.model, pretrained.card
    foreign = _cnn_to_timm(model) if isinstance(model, Cnn) else to_timm(model)
    if "architecture" not in foreign.config:
        raise RequestError(f"timm has no {model.config.kind} of these sizes by name; export it to onnx or safetensors")
    preparation = {**foreign.config["pretrained_cfg"], **for_timm(card)}
    names = {"label_names": list(card.classes)} if card.classes else {}
    _write(folder, "config.json", {**foreign.config, "pretrained_cfg": preparation, **names})
    _write_tensors(folder, "model.safetensors", foreign.state)


def _to_hf(pretrained: Pretrained, folder: Path) -> None:
    foreign = to_hf(pretrained.model, pretrained.card.classes)
    _write(folder, "config.json", foreign.config)
    _write(folder, "preprocessor_config.json", for_transformers(pretrained.card))
    if isinstance(pretrained.model, Clip):
        write_tokenizer(pretrained.model.config.text, folder)
    _write_tensors(folder, "model.safetensors", foreign.state)


def _to_open_clip(pretrained: Pretrained, folder: Path) -> None:
    if not isinstance(pretrained.model, Clip):
        raise RequestError(
            f"open_clip holds image and text models, and this is a {pretrained.card.model.kind}; "
            "export it to timm, hf, onnx or safetensors"
        )
    foreign = to_open_clip(pretrained.model)
    _write(folder, "open_clip_config.json", foreign.config)
    _write_tensors(folder, "open_clip_model.safetensors", foreign.state)


_WRITERS: dict[str, Callable[[Pretrained, Path], None]] = {
    "safetensors": _to_safetensors,
    "timm": _to_timm,
    "hf": _to_hf,
    "open_clip": _to_open_clip,
    "onnx": write_onnx,
}


def _cnn_to_timm(model: Cnn) -> Foreign:
    """timm's own network under its own name."""
    if not model.config.name.startswith(TIMM):
        raise RequestError(
            f"timm's {model.config.name} is not the network of that name here; export it to onnx or safetensors"
        )
    config = {
        "architecture": model.config.name.removeprefix(TIMM),
        "num_classes": model.num_classes,
        "num_features": model.width,
        "pretrained_cfg": {"fixed_input_size": False, "custom_load": False},
    }
    return Foreign(config, {name.removeprefix("net."): tensor for name, tensor in model.state_dict().items()})


def _use(pretrained: Pretrained, folder: Path, fmt: Format) -> str:
    if fmt == "hf":
        kind = _architecture(folder)
        return f"transformers.{kind}.from_pretrained({str(folder)!r})"
    graph = "image.onnx" if isinstance(pretrained.model, Clip) else "model.onnx"
    return {
        "safetensors": f"vitcore.models.load_pretrained({str(folder)!r})",
        "timm": f"timm.create_model('local-dir:{folder}', pretrained=True)",
        "open_clip": f"open_clip.create_model_and_transforms('local-dir:{folder}')",
        "onnx": f"onnxruntime.InferenceSession({str(folder / graph)!r})",
    }[fmt]


def _architecture(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text())["architectures"][0])


def _write(folder: Path, name: str, tree: Mapping[str, Any]) -> None:
    (folder / name).write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n")


def _write_tensors(folder: Path, name: str, state: Mapping[str, Tensor]) -> None:
    owned = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}
    safetensors.torch.save_file(owned, folder / name, metadata={"format": "pt"})
