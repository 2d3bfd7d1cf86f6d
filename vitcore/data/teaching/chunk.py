"""One file of a teacher's outputs: the k largest logits of each view, and what the others amount to.

    top      float16 [steps, B, k]           logits minus the view's largest, largest first: 0, −0.7, …
    classes  int16 or int32 [steps, B, k]    their classes; among equal logits the lower class comes first
    rest     float32 [steps, B]              log Σ exp of the others, minus the view's largest; −∞ where k = K

A softmax does not change when a constant is taken from its logits, and minus the largest one, float16 is finest where
the probability lies: an error of a logit z is at most |z| / 2048, of a probability p therefore p · |ln p| / 2048, below
2e-4. The order of the classes is the teacher's own, so that its decision is kept exactly.

The header holds the SHA-256 of all three and of what they are: a file that was damaged or moved is found out.

Legend: S views, K classes, k of them kept.
"""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vitcore.data.loading.batch import TeacherRows
from vitcore.data.teaching.outputs import Chunk, Outputs
from vitcore.errors import WorkError
from vitcore.identity import canonical_json

_KEY = "vit"
_LENGTH = 8  # bytes that say how long the header is
_LEAST = torch.finfo(torch.float16).min


class Rows(NamedTuple):
    """The outputs of consecutive steps; see the head of this file."""

    top: Tensor
    classes: Tensor
    rest: Tensor


def cut(logits_SK: Tensor, top: int) -> TeacherRows:
    """The `top` largest logits of each view, as they are stored."""
    ordered_SK, classes_SK = logits_SK.float().sort(dim=1, descending=True, stable=True)
    ordered_SK = ordered_SK - ordered_SK[:, :1]
    rest_S = ordered_SK[:, top:].logsumexp(1)  # of nothing: −∞
    return TeacherRows(ordered_SK[:, :top].clamp_min(_LEAST).half(), classes_SK[:, :top], rest_S)


def encode(steps: list[TeacherRows], outputs: Outputs, chunk: Chunk) -> bytes:
    """The file of a stretch of steps, from the rows of all B slots of each."""
    short = torch.int16 if outputs.classes <= 2**15 else torch.int32
    rows = Rows(
        torch.stack([told.top_SK for told in steps]),
        torch.stack([told.classes_SK for told in steps]).to(short),
        torch.stack([told.rest_S for told in steps]),
    )
    said = canonical_json({"sha256": _digest(rows, outputs, chunk)})
    return save({name: tensor.cpu().contiguous() for name, tensor in rows._asdict().items()}, {_KEY: said})


def decode(data: bytes, outputs: Outputs, chunk: Chunk, url: str) -> Rows:
    """What a file holds.

    Args:
        data: the file.
        outputs: what it is a part of.
        chunk: which part.
        url: of the file, for the message.

    Raises:
        WorkError: it is damaged, or another file.
    """
    try:
        length = int.from_bytes(data[:_LENGTH], "little")
        header = json.loads(data[_LENGTH : _LENGTH + length])
        wanted = json.loads(header["__metadata__"][_KEY])["sha256"]
        tensors = load(data)
        rows = Rows(*(tensors[name] for name in Rows._fields))
    except (SafetensorError, ValueError, KeyError, TypeError):
        wanted, rows = None, None
    if rows is None or wanted != _digest(rows, outputs, chunk):
        raise WorkError(f"the teacher's outputs {url} are damaged; delete this file and store them again")
    return rows


def _digest(rows: Rows, outputs: Outputs, chunk: Chunk) -> str:
    """SHA-256 of all numbers, their shapes and types, and of the place they belong to."""
    shapes = [[str(tensor.dtype), *tensor.shape] for tensor in rows]
    found = hashlib.sha256(canonical_json([outputs.identity, list(chunk), shapes]).encode())
    for tensor in rows:
        found.update(tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
