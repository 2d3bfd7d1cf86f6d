"""timm's MLP-Mixer and ours. The names of parameters are the same; what has to be established is the computation."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.block import hidden_width
from vitcore.models.build import build_with
from vitcore.models.interop.foreign import Foreign
from vitcore.models.interop.timm_common import Statistics, check_parts, described_for_timm, shape_in, statistics_of
from vitcore.models.mixer import NORM_EPS, Mixer
from vitcore.recipe import MixerConfig, parse

_COLOURS = 3
_PUBLISHED = {  # patch, width and depth of those that timm knows by a name
    (32, 512, 8): "mixer_s32_224",
    (16, 512, 8): "mixer_s16_224",
    (32, 768, 12): "mixer_b32_224",
    (16, 768, 12): "mixer_b16_224",
    (32, 1024, 24): "mixer_l32_224",
    (16, 1024, 24): "mixer_l16_224",
}
_PARTS = {"MlpMixer", "PatchEmbed", "MixerBlock", "Mlp"}


def from_timm_mixer(
    source: nn.Module | Mapping[str, Tensor],
    *,
    like: nn.Module | None = None,
    mean: Statistics | None = None,
    std: Statistics | None = None,
) -> Mixer:
    """Our mixer with the weights of a timm ``MlpMixer`` or its state dict.

    Args:
        source: the model, or its state dict.
        like: a timm model (on the meta device, if you like) that says what the state dict `source` does not: that it
            computes the same, statistics and dropout.
        mean: statistics the input is normalised with; default: those of the model's ``pretrained_cfg``, else 0.5.
        std: likewise.
    Raises:
        RequestError: the model has parts ours has not (ResMLP, gMLP, gated MLPs, another norm or activation); the
            sentence names them.
    """
    described = source if isinstance(source, nn.Module) else like
    state = source.state_dict() if isinstance(source, nn.Module) else source
    options = statistics_of(described, mean, std)
    if described is not None:
        check_parts(described, _PARTS, lambda _: NORM_EPS)
        options["dropout"] = _dropout_of(described)
    config, image_size = _describe(state, options)
    model = build_with(
        config,
        state,
        num_classes=len(state["head.weight"]) if "head.weight" in state else 0,
        image_size=image_size,
        source="the weights of the timm mixer",
    )
    assert isinstance(model, Mixer)
    return model


def to_timm_mixer(model: Mixer) -> Foreign:
    """timm's ``config.json`` and state dict of our mixer.

    timm's functions fix patch, width and depth, so that only the published shapes have an ``architecture``. Of any
    other, ``model_args`` holds all keywords of its class ``MlpMixer``. Stochastic depth is left out: timm's is the same
    in every block.
    """
    config = model.config
    ratios = [_their_ratio(config.width, ratio) for ratio in (config.token_ratio, config.channel_ratio)]
    described = described_for_timm(model, "stem.proj", fixed_size=True)
    name = _PUBLISHED.get((config.patch, config.width, config.depth))
    args: dict[str, Any] = {"img_size": model.image_size, "mlp_ratio": ratios, "proj_drop_rate": config.dropout}
    if name is None:
        shape = {"patch_size": config.patch, "embed_dim": config.width, "num_blocks": config.depth}
        described["model_args"] = {**shape, **args, "num_classes": model.num_classes}
    else:
        described["architecture"], described["model_args"] = name, args
    return Foreign(described, dict(model.state_dict()))


def _describe(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> tuple[MixerConfig, int]:
    """Read architecture and image size off the shapes."""
    width, colours, patch, across = shape_in(state, "stem.proj.weight", 4)
    token_hidden, patches = shape_in(state, "blocks.0.mlp_tokens.fc1.weight", 2)
    channel_hidden, _ = shape_in(state, "blocks.0.mlp_channels.fc1.weight", 2)
    grid = math.isqrt(patches)
    if patch != across or grid**2 != patches or colours != _COLOURS:
        raise RequestError(
            f"only square patches of colour images on a square grid are supported, not {colours} channels in "
            f"{patches} patches of {patch} x {across} pixels"
        )
    tree = {
        "patch": patch,
        "width": width,
        "depth": len({match[1] for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}),
        "token_ratio": token_hidden / width,
        "channel_ratio": channel_hidden / width,
        **options,
    }
    return parse(MixerConfig, tree), grid * patch


def _dropout_of(model: nn.Module) -> float:
    """Rate in the MLPs.

    Raises:
        RequestError: there is stochastic depth: timm's is the same in every block, ours grows with the depth.
    """
    block: Any = model.get_submodule("blocks.0")
    rate = getattr(block.drop_path, "drop_prob", 0.0)
    if rate:
        raise RequestError(f"timm's drop_path_rate={rate:g} is the same in every mixer block; build its model without")
    return float(block.mlp_tokens.drop1.p)


def _their_ratio(width: int, ratio: float) -> float:
    """A ratio that gives our hidden width where timm cuts off the product's fraction."""
    hidden = hidden_width(width, ratio)
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width
