"""Pyramid vision transformer: "PVT v2: Improved Baselines with Pyramid Vision Transformer" (Wang et al. 2022,
2106.13797).

Legend of the shape suffixes: B images, C colour channels, H and W pixels, Y and X rows and columns of a stage's map,
N = Y · X tokens, D channels of a stage, A attention heads, E = D / A channels of a head, R tokens that give keys and
values, M hidden width of the MLP, K classes.

Parameters carry the names timm gives them, so that a file of our weights is a file of timm weights.
"""

from __future__ import annotations

import re

import torch.nn.functional as F
from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.block import DropPath
from vitcore.models.classifier import Classifier, check_parameter, make_head, zero_head
from vitcore.models.vit import INIT_STD
from vitcore.recipe import PvtConfig

NORM_EPS = 1e-6
EMBED_EPS = 1e-5  # of the norms after a convolution, as in the paper's code
STRIDE = 4  # of the first stage; every further one halves the map
POOLED = 7  # side of the map of keys and values under linear attention


class OverlapEmbed(nn.Module):
    """The paper's overlapping patch embedding: a strided convolution whose windows overlap, then a norm."""

    def __init__(self, channels: int, width: int, *, side: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, side, stride, padding=side // 2)
        self.norm = nn.LayerNorm(width, eps=EMBED_EPS)

    def forward(self, map_BDYX: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (B, N, D) of the smaller map, row by row, and its rows and columns."""
        smaller_BDYX: Tensor = self.proj(map_BDYX)
        Y, X = smaller_BDYX.shape[-2:]
        return self.norm(smaller_BDYX.flatten(2).transpose(1, 2)), (Y, X)


class ReducedAttention(nn.Module):
    """Spatial-reduction attention (2102.12122, section 3.3): keys and values come from a smaller map.

    The map is made smaller by a convolution of side and stride `reduction` (nothing where it is 1; rows and columns
    beyond the last whole window are not seen), or under `linear`, the paper's linear spatial-reduction attention, by
    average pooling to 7 × 7 and a 1 × 1 convolution with a GELU: its cost grows with the tokens, not with their square.
    """

    def __init__(self, width: int, heads: int, *, reduction: int, linear: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.linear, self.reduces = heads, linear, linear or reduction > 1
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)
        if self.reduces:
            side = 1 if linear else reduction
            self.sr = nn.Conv2d(width, width, side, side)
            self.norm = nn.LayerNorm(width, eps=EMBED_EPS)

    def forward(self, tokens_BND: Tensor, size: tuple[int, int]) -> Tensor:
        """What the tokens of a map of `size` (rows, columns) gather from its reduction."""
        sources_BRD = self.reduce(tokens_BND, size) if self.reduces else tokens_BND
        B, N, D = tokens_BND.shape
        q_BNAE: Tensor = self.q(tokens_BND).view(B, N, self.heads, D // self.heads)
        k_BRAE, v_BRAE = self.kv(sources_BRD).view(B, -1, 2, self.heads, D // self.heads).unbind(2)
        q_BANE, k_BARE, v_BARE = (part.transpose(1, 2) for part in (q_BNAE, k_BRAE, v_BRAE))
        mixed_BANE = F.scaled_dot_product_attention(q_BANE, k_BARE, v_BARE)
        out_BND: Tensor = self.drop(self.proj(mixed_BANE.transpose(1, 2).flatten(2)))
        return out_BND

    def reduce(self, tokens_BND: Tensor, size: tuple[int, int]) -> Tensor:
        """The tokens (B, R, D) that give keys and values."""
        map_BDYX = as_map(tokens_BND, size)
        if self.linear:
            map_BDYX = F.adaptive_avg_pool2d(map_BDYX, POOLED)
        reduced_BRD: Tensor = self.norm(self.sr(map_BDYX).flatten(2).transpose(1, 2))
        return F.gelu(reduced_BRD) if self.linear else reduced_BRD


class ConvMlp(nn.Module):
    """The paper's convolutional feed-forward: an MLP with a 3 × 3 depthwise convolution before its GELU, by whose zero
    padding tokens learn where they are; no position embedding is needed. Under `linear` a ReLU comes before it, as in
    the paper's code.
    """

    def __init__(self, width: int, hidden: int, *, linear: bool, dropout: float) -> None:
        super().__init__()
        self.linear = linear
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens_BND: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, N, D) to (B, N, D) by way of a map (B, M, Y, X)."""
        map_BMYX = as_map(self.fc1(tokens_BND), size)
        map_BMYX = self.dwconv(F.relu(map_BMYX) if self.linear else map_BMYX)
        hidden_BNM: Tensor = self.drop(F.gelu(map_BMYX.flatten(2).transpose(1, 2)))
        out_BND: Tensor = self.drop(self.fc2(hidden_BNM))
        return out_BND


class PvtBlock(nn.Module):
    """Pre-norm block of attention and MLP on the tokens of a map, each branch under stochastic depth."""

    def __init__(self, config: PvtConfig, stage: int, drop_path: float) -> None:
        super().__init__()
        width, linear, dropout = config.widths[stage], config.linear, config.dropout
        heads, reduction = config.heads[stage], config.reductions[stage]
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = ReducedAttention(width, heads, reduction=reduction, linear=linear, dropout=dropout)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = ConvMlp(width, width * config.mlp_ratios[stage], linear=linear, dropout=dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens_BND: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, N, D) to (B, N, D), of a map of `size` rows and columns."""
        middle_BND: Tensor = tokens_BND + self.drop_path(self.attn(self.norm1(tokens_BND), size))
        refined_BND: Tensor = self.drop_path(self.mlp(self.norm2(middle_BND), size))
        return middle_BND + refined_BND


class Stage(nn.Module):
    """A downsampling (where `narrower`, the channels of the stage before, is given), blocks and a norm."""

    def __init__(self, config: PvtConfig, stage: int, narrower: int | None, drop_paths: list[float]) -> None:
        super().__init__()
        width = config.widths[stage]
        self.downsample = None if narrower is None else OverlapEmbed(narrower, width, side=3, stride=2)
        self.blocks = nn.ModuleList(PvtBlock(config, stage, rate) for rate in drop_paths)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, tokens_BND: Tensor, size: tuple[int, int]) -> Tensor:
        """The stage's map (B, D, Y, X) from the tokens of a map of `size` rows and columns."""
        for block in self.blocks:
            tokens_BND = block(tokens_BND, size)
        return as_map(self.norm(tokens_BND), size)


class Pvt(Classifier):
    """PVT v2; the head reads the mean of the last stage's map.

    Convolutional weights fit any resolution; `image_size` only says what the model was trained for.

    Args:
        config: the architecture.
        num_classes: K.
        image_size: pixels.
    Raises:
        RequestError: the images are too small for a stage's reduction.
    """

    config: PvtConfig

    def __init__(self, config: PvtConfig, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.config, self.num_classes, self.image_size = config, num_classes, image_size
        self.width = config.widths[-1]
        self.num_layers = sum(config.depths) + 1
        self.smallest = smallest_image(config)
        self._check_size(image_size, image_size)
        self.patch_embed = OverlapEmbed(3, config.widths[0], side=7, stride=STRIDE)
        self.stages = nn.ModuleList(self._make_stages())
        self.head = make_head(self.width, num_classes)
        self._initialise()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, K); features (B, D) without a head."""
        logits_BK: Tensor = self.head(self.pyramid(images_BCHW)[-1].mean(dim=(2, 3)))
        return logits_BK

    def pyramid(self, images_BCHW: Tensor) -> list[Tensor]:
        """The four stages' maps for dense prediction: (B, D_i, H / 4, W / 4) to (B, D_i, H / 32, W / 32), where sides
        that do not divide are rounded up.
        """
        self._check_size(*images_BCHW.shape[-2:])
        maps: list[Tensor] = []
        for stage in self._stages():
            embed = self.patch_embed if stage.downsample is None else stage.downsample
            tokens_BND, size = embed(maps[-1] if maps else images_BCHW)
            maps.append(stage(tokens_BND, size))
        return maps

    def layer_of(self, name: str) -> int:
        """0 for the stem; blocks count on through the stages from 1; the last number is the head's.

        A downsampling belongs to the block after it, a stage's norm to the block before it, the last to the head.
        """
        check_parameter(self, name)
        found = re.match(r"stages\.(\d)\.(?:(downsample)|blocks\.(\d+)|norm)\.", name)
        if not found:
            return 0 if name.startswith("patch_embed.") else self.num_layers
        stage = int(found[1])
        before = sum(self.config.depths[:stage])
        if found[2]:
            return before + 1
        if found[3]:
            return before + int(found[3]) + 1
        return before + self.config.depths[stage] + (stage == len(self.config.depths) - 1)

    def undecayed(self) -> set[str]:
        """None: biases and norms have one dimension."""
        return set()

    def allow_any_size(self) -> None:
        """Convolutional weights fit any resolution."""

    def head_parameters(self) -> tuple[str, ...]:
        """Weight and bias of the head."""
        return ("head.weight", "head.bias") if self.num_classes else ()

    def reset_head(self, num_classes: int) -> None:
        """Replace the head in place by a zero-initialised one."""
        self.head = zero_head(self.width, num_classes, self.patch_embed.norm.weight)
        self.num_classes = num_classes

    def _make_stages(self) -> list[Stage]:
        config = self.config
        growth = config.drop_path / max(sum(config.depths) - 1, 1)
        stages, before = [], 0
        for stage, depth in enumerate(config.depths):
            rates = [growth * (before + block) for block in range(depth)]
            stages.append(Stage(config, stage, config.widths[stage - 1] if stage else None, rates))
            before += depth
        return stages

    def _stages(self) -> list[Stage]:
        return [stage for stage in self.stages if isinstance(stage, Stage)]

    def _check_size(self, height: int, width: int) -> None:
        if min(height, width) < self.smallest:
            raise RequestError(
                f"images of {height} x {width} pixels are too small for this pyramid: its reductions "
                f"{self.config.reductions} need {self.smallest}; take larger images or smaller reductions"
            )

    def _initialise(self) -> None:
        """Truncated normal for linear layers, He's normal over the fan out for convolutions, as in the paper's code.
        Biases are zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
            elif isinstance(module, nn.Conv2d):
                fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
            if isinstance(module, nn.Linear | nn.Conv2d):
                assert module.bias is not None
                nn.init.zeros_(module.bias)


def as_map(tokens_BND: Tensor, size: tuple[int, int]) -> Tensor:
    """The same memory as a map (B, D, Y, X) of `size` rows and columns."""
    B, _, D = tokens_BND.shape
    return tokens_BND.transpose(1, 2).view(B, D, *size)


def smallest_image(config: PvtConfig) -> int:
    """Pixels along a side from which on every stage's map holds a window of its reduction."""
    if config.linear:
        return 1
    return max((reduction - 1) * (STRIDE << stage) + 1 for stage, reduction in enumerate(config.reductions))
