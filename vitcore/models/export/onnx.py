"""A model as ONNX graphs that take plain pixels.

The input ``images`` is float32 (B, 3, H, W) in [0, 1], of any B; normalisation is part of the graph. The output is
``logits`` (B, K), or ``features`` (B, D) of a model without a head. A CLIP becomes two graphs whose outputs are
``embeddings`` (B, E) of length 1: ``image.onnx``, and ``text.onnx``, whose input ``tokens`` is int64 (B, N).
What a user must know beside (class names, how to crop an image, the scale of similarities) is in the graphs' metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.clip import Clip
from vitcore.models.export.preparation import resize_of
from vitcore.models.model import Model
from vitcore.models.pretrained import ModelCard, Pretrained

_EXAMPLES = 2  # with one, the batch would be taken for a constant


class _FromPixels(nn.Module):
    """A model behind its normalisation."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean_C11", torch.tensor(model.config.mean).view(-1, 1, 1))
        self.register_buffer("std_C11", torch.tensor(model.config.std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Pixels in [0, 1] to what the model says."""
        said: Tensor = self.model((images - self.mean_C11) / self.std_C11)
        return said


class _Texts(nn.Module):
    """The text tower of a CLIP."""

    def __init__(self, model: Clip) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids to embeddings."""
        return self.model.embed_texts(tokens)


def write_onnx(pretrained: Pretrained, folder: Path) -> None:
    """Write the graphs of a model into `folder`.

    Raises:
        RequestError: the packages of the extra ``onnx`` are missing.
    """
    model, card = pretrained.model, pretrained.card
    images = torch.rand(_EXAMPLES, 3, card.image_size, card.image_size)
    said = {**_said(card), "digest": pretrained.digest}
    if isinstance(model, Clip):
        tokens = torch.ones(_EXAMPLES, model.config.text.context, dtype=torch.int64)
        said["logit_scale"] = str(model.logit_scale.exp().item())
        if model.logit_bias is not None:
            said["logit_bias"] = str(model.logit_bias.item())
        text = {**said, "tokenizer": model.config.text.tokenizer}
        _graph(_FromPixels(model), ("images", images), "embeddings", said, folder / "image.onnx")
        _graph(_Texts(model), ("tokens", tokens), "embeddings", text, folder / "text.onnx")
    else:
        output = "logits" if card.num_classes else "features"
        _graph(_FromPixels(model), ("images", images), output, said, folder / "model.onnx")


def _graph(module: nn.Module, example: tuple[str, Tensor], output: str, said: dict[str, str], path: Path) -> None:
    """Trace `module` with a batch of any size; weights beyond what one file can hold go into a second one."""
    name, tensor = example
    program = _exporter()(
        module.eval(),
        (tensor,),
        input_names=[name],
        output_names=[output],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    shape = program.model.graph.inputs[0].shape
    assert shape is not None and not isinstance(shape[0], int), f"{path.name} takes one batch size alone"
    program.model.metadata_props.update(said)
    program.save(path)


def _exporter() -> Callable[..., torch.onnx.ONNXProgram]:
    try:
        import onnxscript  # noqa: F401  (what torch's exporter needs)
    except ImportError:
        raise RequestError("ONNX needs its packages: pip install 'vitcore[onnx]'") from None
    return torch.onnx.export  # type: ignore[return-value]


def _said(card: ModelCard) -> dict[str, str]:
    said = {"image_size": str(card.image_size), "resize": str(resize_of(card))}
    return {**said, "classes": json.dumps(card.classes)} if card.classes else said
