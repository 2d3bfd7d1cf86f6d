"""open_clip's names of our parameters: its ``CLIP`` and ``CustomTextCLIP``, with its own ViT or timm's as image tower.

Ours and theirs hold the same numbers. Some of theirs have other shapes: no leading ones, or the matrix of a projection
transposed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

from vitcore.errors import RequestError

_NAMED = 6
_BLOCK = {
    "norm1": "ln_1",
    "attn.qkv": "attn.in_proj",
    "attn.proj": "attn.out_proj",
    "ls1": "ls_1",
    "norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "ls2": "ls_2",
}
_IMAGE = {
    "patch_embed.proj.weight": "conv1.weight",
    "cls_token": "class_embedding",
    "pos_embed": "positional_embedding",
    "norm_pre.weight": "ln_pre.weight",
    "norm_pre.bias": "ln_pre.bias",
    "norm.weight": "ln_post.weight",
    "norm.bias": "ln_post.bias",
    "fc_norm.weight": "ln_post.weight",
    "fc_norm.bias": "ln_post.bias",
}
_TEXT = {
    "token_embedding.weight": "token_embedding.weight",
    "pos_embed": "positional_embedding",
    "norm.weight": "ln_final.weight",
    "norm.bias": "ln_final.bias",
}
_TRANSPOSED = re.compile(r"visual\.proj|(text\.)?text_projection")


def their_name(name: str, *, trunk: bool, custom: bool, biased: bool) -> str:
    """open_clip's name of our parameter.

    Args:
        name: as `Clip.state_dict` has it.
        trunk: whether the image tower is timm's, whose names are ours.
        custom: whether the text tower is a module of its own (``CustomTextCLIP``).
        biased: whether the text projection has a bias; it is a linear layer then, else a matrix.
    """
    tower, _, rest = name.partition(".")
    if tower == "image":
        return f"visual.trunk.{rest}" if trunk else f"visual.{_inside(rest, _IMAGE)}"
    if tower == "image_projection":
        return "visual.head.proj.weight" if trunk else "visual.proj"
    if tower != "text":
        return name
    prefix = "text." if custom else ""
    if rest.startswith("projection."):
        return f"{prefix}text_{rest}" if biased else f"{prefix}text_projection"
    return prefix + _inside(rest, _TEXT)


def _inside(name: str, known: dict[str, str]) -> str:
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias|gamma)", name)
    if not block:
        return known[name]
    number, part, kind = block.groups()
    joint = "_" if part == "attn.qkv" else "."  # of torch's MultiheadAttention: in_proj_weight
    return f"transformer.resblocks.{number}.{_BLOCK[part]}{joint}{kind}"


def to_theirs(name: str, tensor: Tensor) -> Tensor:
    """Our tensor in the shape that their parameter `name` has; a copy."""
    tensor = tensor.detach()
    if _TRANSPOSED.fullmatch(name):
        tensor = tensor.T
    elif name == "visual.class_embedding":
        tensor = tensor.flatten()
    elif name == "visual.positional_embedding":
        tensor = tensor.squeeze(0)
    return tensor.clone().contiguous()


def to_ours(name: str, tensor: Tensor) -> Tensor:
    """Their tensor `name` in the shape of ours."""
    if _TRANSPOSED.fullmatch(name):
        return tensor.T.contiguous()
    if name == "visual.class_embedding":
        return tensor.reshape(1, 1, -1)
    return tensor.unsqueeze(0) if name == "visual.positional_embedding" else tensor


def check_names(found: Iterable[str], expected: Iterable[str]) -> None:
    """Compare the names of a state dict with those a model has.

    Raises:
        RequestError: some are unknown or missing; the sentence names them.
    """
    there, wanted = set(found), set(expected)
    faults = [
        f"{kind} {', '.join(sorted(names)[:_NAMED])}" + (f" and {len(names) - _NAMED} more" * (len(names) > _NAMED))
        for kind, names in (("unknown", there - wanted), ("missing", wanted - there))
        if names
    ]
    if faults:
        raise RequestError(f"the weights of the open_clip model have no counterpart here: {'; '.join(faults)}")
