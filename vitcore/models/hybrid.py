"""Hybrid: a ViT over the feature map of a ResNet v2 cut short (Dosovitskiy et al. 2021, 2010.11929, section 3.1).

The stem has group norms and standardised convolutions (section 4.1), padded so that every map is exactly half of the
one before, and as in the published hybrids its blocks have their norms after the convolutions.

Legend of the shape suffixes: B images, H and W pixels or cells of a map, S channels of a map.
Parameters carry the names timm gives them.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.vit import PatchEmbed, VisionTransformer
from vitcore.recipe import HybridConfig

ROOT_WIDTH = 64
STAGE_WIDTHS = (256, 512, 1024, 2048)
STANDARD_EPS = 1e-8
GROUPS = 32
GROUP_EPS = 1e-5
_SQUEEZE = 4
_ROOT_STRIDE = 4


class StandardConv(nn.Conv2d):
    """Convolution without bias whose kernels are standardised, each to mean 0 and variance 1 (1903.10520)."""

    def __init__(self, from_width: int, to_width: int, side: int, stride: int = 1) -> None:
        super().__init__(from_width, to_width, side, stride=stride, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """(B, S, H, W) to (B, S', ⌈H / stride⌉, ⌈W / stride⌉)."""
        weight = F.layer_norm(self.weight, self.weight.shape[1:], eps=STANDARD_EPS)
        return F.conv2d(same_pad(input, self.kernel_size[0], self.stride[0]), weight, stride=self.stride)


def same_pad(maps_BSHW: Tensor, side: int, stride: int) -> Tensor:
    """Padded with zeros so that windows of `side` give ⌈H / stride⌉ × ⌈W / stride⌉ cells; an odd zero ends a line."""
    lacking = [max((-(-size // stride) - 1) * stride + side - size, 0) for size in maps_BSHW.shape[-2:]]
    if not any(lacking):
        return maps_BSHW
    height, width = lacking
    return F.pad(maps_BSHW, (width // 2, width - width // 2, height // 2, height - height // 2))


def _norm(width: int) -> nn.Module:
    return nn.GroupNorm(GROUPS, width, eps=GROUP_EPS)


class Bottleneck(nn.Module):
    """Three convolutions, 1 × 1, 3 × 3, 1 × 1, around a residual (1512.03385, section 4.1); the middle one strides."""

    def __init__(self, from_width: int, to_width: int, stride: int, *, project: bool) -> None:
        super().__init__()
        narrow = to_width // _SQUEEZE
        self.downsample = Projection(from_width, to_width, stride) if project else nn.Identity()
        self.conv1, self.norm1 = StandardConv(from_width, narrow, 1), _norm(narrow)
        self.conv2, self.norm2 = StandardConv(narrow, narrow, 3, stride), _norm(narrow)
        self.conv3, self.norm3 = StandardConv(narrow, to_width, 1), _norm(to_width)

    def forward(self, maps_BSHW: Tensor) -> Tensor:
        """(B, S, H, W) to (B, S', H / stride, W / stride)."""
        narrow_BSHW = F.relu(self.norm1(self.conv1(maps_BSHW)))
        narrow_BSHW = F.relu(self.norm2(self.conv2(narrow_BSHW)))
        return F.relu(self.norm3(self.conv3(narrow_BSHW)) + self.downsample(maps_BSHW))


class Projection(nn.Module):
    """The shortcut of a block that changes the width or the resolution."""

    def __init__(self, from_width: int, to_width: int, stride: int) -> None:
        super().__init__()
        self.conv = StandardConv(from_width, to_width, 1, stride)
        self.norm = _norm(to_width)

    def forward(self, maps_BSHW: Tensor) -> Tensor:
        """(B, S, H, W) to (B, S', H / stride, W / stride)."""
        projected_BSHW: Tensor = self.norm(self.conv(maps_BSHW))
        return projected_BSHW


class Root(nn.Module):
    """The first convolution and the pooling: a map a quarter of the image along each side."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = StandardConv(3, ROOT_WIDTH, 7, 2)
        self.norm = _norm(ROOT_WIDTH)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 64, H / 4, W / 4)."""
        half_BSHW = F.relu(self.norm(self.conv(images_BCHW)))
        return F.max_pool2d(same_pad(half_BSHW, 3, 2), 3, stride=2)  # after the ReLU no maximum is below the padding


class Stage(nn.Module):
    """Bottlenecks of one width; the first changes the width, and the resolution where it strides."""

    def __init__(self, from_width: int, to_width: int, depth: int, stride: int) -> None:
        super().__init__()
        first = Bottleneck(from_width, to_width, stride, project=True)
        others = (Bottleneck(to_width, to_width, 1, project=False) for _ in range(depth - 1))
        self.blocks = nn.Sequential(first, *others)

    def forward(self, maps_BSHW: Tensor) -> Tensor:
        """(B, S, H, W) to (B, S', H / stride, W / stride)."""
        deeper_BSHW: Tensor = self.blocks(maps_BSHW)
        return deeper_BSHW


class ResNet(nn.Module):
    """The root and one stage for each number of `stem`."""

    def __init__(self, stem: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = Root()
        widths = (ROOT_WIDTH, *STAGE_WIDTHS)
        self.stages = nn.Sequential(
            *(Stage(widths[i], widths[i + 1], depth, 1 if i == 0 else 2) for i, depth in enumerate(stem))
        )

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, S, H / r, W / r), r = `reduction_of` the stem."""
        maps_BSHW: Tensor = self.stages(self.stem(images_BCHW))
        return maps_BSHW


class HybridEmbed(PatchEmbed):
    """Patches of the stem's feature map, each projected linearly."""

    def __init__(self, stem: tuple[int, ...], patch: int, width: int, *, bias: bool) -> None:
        super().__init__(patch, width, channels=STAGE_WIDTHS[len(stem) - 1] if stem else ROOT_WIDTH, bias=bias)
        self.backbone = ResNet(stem) if stem else Root()
        for module in self.backbone.modules():
            if isinstance(module, StandardConv):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Patch tokens (B, P, D), row by row."""
        return super().forward(self.backbone(images_BCHW))


class Hybrid(VisionTransformer):
    """ViT whose patches are cut from a convolutional feature map.

    Raises:
        RequestError: more than four stages, a stage without blocks, or an image size that is no multiple of a patch.
    """

    config: HybridConfig

    def __init__(self, config: HybridConfig, num_classes: int, image_size: int) -> None:
        if len(config.stem) > len(STAGE_WIDTHS) or any(depth < 1 for depth in config.stem):
            raise RequestError(f"the stem {config.stem} cannot be built: give up to four stages of 1 block or more")
        super().__init__(config, num_classes, image_size)

    def patch_pixels(self) -> int:
        """Side of what becomes one patch token, in pixels: cells of the map times the pixels of a cell."""
        return self.config.patch * reduction_of(self.config.stem)

    def make_patches(self) -> nn.Module:
        """The stem and the projection of its patches."""
        config = self.config
        return HybridEmbed(config.stem, config.patch, config.width, bias=config.patch_bias)


def reduction_of(stem: tuple[int, ...]) -> int:
    """Pixels along a side of a cell of the stem's map: 4 after the first stage, doubled by each further one."""
    return int(_ROOT_STRIDE * 2 ** max(len(stem) - 1, 0))
