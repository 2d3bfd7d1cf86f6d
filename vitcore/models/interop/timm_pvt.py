"""timm's PVT v2 and ours. The names of parameters are the same; what has to be established is the computation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.build import build_with
from vitcore.models.interop.foreign import Foreign
from vitcore.models.interop.timm_common import Statistics, check_parts, described_for_timm, shape_in, statistics_of
from vitcore.models.pvt import EMBED_EPS, NORM_EPS, Pvt
from vitcore.recipe import PvtConfig, parse

Four = tuple[int, int, int, int]

_PARTS = {
    "PyramidVisionTransformerV2",
    "OverlapPatchEmbed",
    "PyramidVisionTransformerStage",
    "Block",
    "Attention",
    "MlpWithDepthwiseConv",
    "AdaptiveAvgPool2d",
    "ReLU",
}
_STAGES = 4
_HEADS = (1, 2, 5, 8)
_SIZE = 224
_DIGITS = 6  # timm's rates have been float32 on the way
_PUBLISHED = {  # width of the first stage, and depths
    (32, (2, 2, 2, 2)): "pvt_v2_b0",
    (64, (2, 2, 2, 2)): "pvt_v2_b1",
    (64, (3, 4, 6, 3)): "pvt_v2_b2",
    (64, (3, 4, 18, 3)): "pvt_v2_b3",
    (64, (3, 8, 27, 3)): "pvt_v2_b4",
    (64, (3, 6, 40, 3)): "pvt_v2_b5",
}


def from_timm_pvt(
    source: nn.Module | Mapping[str, Tensor],
    *,
    like: nn.Module | None = None,
    heads: Four | None = None,
    image_size: int | None = None,
    mean: Statistics | None = None,
    std: Statistics | None = None,
) -> Pvt:
    """Our PVT v2 with the weights of a timm ``PyramidVisionTransformerV2`` or its state dict.

    Args:
        source: the model, or its state dict.
        like: a timm model (on the meta device, if you like) that says what the state dict `source` does not: that it
            computes the same, heads, image size, statistics, dropout and stochastic depth.
        heads: attention heads of each stage; default: the model's, or 1, 2, 5 and 8, those of every published PVT v2.
        image_size: pixels; default: that of the model's ``pretrained_cfg``, or 224.
        mean: statistics the input is normalised with; default: those of the model's ``pretrained_cfg``, else 0.5.
        std: likewise.
    Raises:
        RequestError: the model has parts ours has not, or computes otherwise; the sentence names them.
    """
    described = source if isinstance(source, nn.Module) else like
    state = source.state_dict() if isinstance(source, nn.Module) else source
    options = {"heads": _HEADS, **statistics_of(described, mean, std)}
    if described is not None:
        check_parts(described, _PARTS, _epsilon)
        options |= _options_of(described)
        told: Mapping[str, Any] = getattr(described, "pretrained_cfg", None) or {}
        image_size = image_size or (told.get("input_size") or [None])[-1]
    if heads:
        options["heads"] = heads
    model = build_with(
        _describe(state, options),
        state,
        num_classes=len(state["head.weight"]) if "head.weight" in state else 0,
        image_size=image_size or _SIZE,
        source="the weights of the timm PVT v2",
    )
    assert isinstance(model, Pvt)
    return model


def to_timm_pvt(model: Pvt) -> Foreign:
    """timm's ``config.json`` and state dict of our PVT v2.

    ``model_args`` tell all of the shape; ``architecture`` is the published model of the same width and depths, or b2.
    """
    config = model.config
    name = _PUBLISHED.get((config.widths[0], config.depths), "pvt_v2_b2")
    described = described_for_timm(model, "patch_embed.proj", fixed_size=False)
    described["architecture"] = "pvt_v2_b2_li" if config.linear and name == "pvt_v2_b2" else name
    described["model_args"] = {
        "embed_dims": list(config.widths),
        "depths": list(config.depths),
        "num_heads": list(config.heads),
        "mlp_ratios": list(config.mlp_ratios),
        "sr_ratios": list(config.reductions),
        "linear": config.linear,
        "proj_drop_rate": config.dropout,
        "drop_path_rate": config.drop_path,
    }
    return Foreign(described, dict(model.state_dict()))


def _describe(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> PvtConfig:
    """Read the architecture off names and shapes."""
    shapes = [shape_in(state, f"stages.{stage}.blocks.0.mlp.fc1.weight", 2) for stage in range(_STAGES)]
    for stage, (hidden, width) in enumerate(shapes):
        if hidden % width:
            raise RequestError(
                f"the MLP of stage {stage} is {hidden} wide at {width} channels; only whole multiples are supported"
            )
    reduced = [f"stages.{stage}.blocks.0.attn.sr.weight" for stage in range(_STAGES)]
    reductions = [shape_in(state, name, 4)[-1] if name in state else 1 for name in reduced]
    linear = (
        reduced[0] in state and reductions[0] == 1
    )  # a convolution that reduces nothing: the pooling before it does
    tree = {
        "widths": tuple(width for _, width in shapes),
        "depths": tuple(_depth(state, stage) for stage in range(_STAGES)),
        "mlp_ratios": tuple(hidden // width for hidden, width in shapes),
        **({"linear": True} if linear else {"reductions": tuple(reductions)}),
        **options,
    }
    return parse(PvtConfig, tree)


def _depth(state: Mapping[str, Tensor], stage: int) -> int:
    return len({match[1] for name in state if (match := re.match(rf"stages\.{stage}\.blocks\.(\d+)\.", name))})


def _epsilon(name: str) -> float:
    """Norms after a convolution have PyTorch's epsilon; the others begin or end a block or a stage."""
    return EMBED_EPS if name.endswith(("patch_embed.norm", "downsample.norm", "attn.norm")) else NORM_EPS


def _options_of(model: nn.Module) -> dict[str, Any]:
    """Fields of `PvtConfig` that names and shapes of the parameters do not tell."""
    stages: Any = model.stages
    if len(stages) != _STAGES:
        raise RequestError(f"timm's model has {len(stages)} stages; only {_STAGES} are supported")
    last = stages[-1].blocks[-1]
    return {
        "heads": tuple(int(stage.blocks[0].attn.num_heads) for stage in stages),
        "dropout": float(last.mlp.drop.p),
        "drop_path": round(float(getattr(last.drop_path1, "drop_prob", 0.0)), _DIGITS),
    }
