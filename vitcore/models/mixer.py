"""MLP-Mixer: "MLP-Mixer: An all-MLP Architecture for Vision" (Tolstikhin et al. 2021, 2105.01601).

Legend of the shape suffixes: B images, C colour channels, H and W pixels, P patches (the tokens), D channels of a
token, K classes.

Parameters carry the names timm gives them, so that a file of our weights is a file of timm weights.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.block import DropPath, Mlp, hidden_width
from vitcore.models.classifier import Classifier, check_parameter, make_head, zero_head
from vitcore.models.vit import INIT_STD, PatchEmbed, grid_of
from vitcore.recipe import MixerConfig

NORM_EPS = 1e-6


class MixerBlock(nn.Module):
    """One MLP along the tokens, shared by all channels, then one along the channels, shared by all tokens (eq. 1).

    Args:
        config: the architecture.
        patches: P, tokens of an image.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, config: MixerConfig, patches: int, drop_path: float) -> None:
        super().__init__()
        width, dropout = config.width, config.dropout
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp_tokens = Mlp(patches, hidden_width(width, config.token_ratio), dropout=dropout)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp_channels = Mlp(width, hidden_width(width, config.channel_ratio), dropout=dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens_BPD: Tensor) -> Tensor:
        """(B, P, D) to (B, P, D)."""
        columns_BDP: Tensor = self.mlp_tokens(self.norm1(tokens_BPD).transpose(1, 2))
        mixed_BPD: Tensor = tokens_BPD + self.drop_path(columns_BDP.transpose(1, 2))
        refined_BPD: Tensor = self.drop_path(self.mlp_channels(self.norm2(mixed_BPD)))
        return mixed_BPD + refined_BPD


class Mixer(Classifier):
    """MLP-Mixer; the head reads the mean of the tokens after the final norm (section 2).

    The token-mixing weights belong to one number of patches: the model takes images of one size and cannot be carried
    to another.

    Args:
        config: the architecture.
        num_classes: K.
        image_size: pixels; a multiple of the patch side.
    Raises:
        RequestError: the image size is no multiple of the patch.
    """

    config: MixerConfig

    def __init__(self, config: MixerConfig, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.config, self.num_classes, self.image_size = config, num_classes, image_size
        self.width = config.width
        self.num_layers = config.depth + 1
        patches = grid_of(image_size, config.patch) ** 2
        self.stem = PatchEmbed(config.patch, config.width)
        growth = config.drop_path / max(config.depth - 1, 1)
        self.blocks = nn.ModuleList(MixerBlock(config, patches, growth * depth) for depth in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.head = make_head(config.width, num_classes)
        self._initialise()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, K); features (B, D) without a head."""
        logits_BK: Tensor = self.head(self.forward_features(images_BCHW).mean(dim=1))
        return logits_BK

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        """All tokens after the final norm (B, P, D)."""
        height, width = images_BCHW.shape[-2:]
        if height != self.image_size or width != self.image_size:
            raise RequestError(
                f"the images are {height} x {width} pixels but this mixer takes {self.image_size} x {self.image_size}: "
                "resize them"
            )
        tokens_BPD: Tensor = self.stem(images_BCHW)
        for block in self.blocks:
            tokens_BPD = block(tokens_BPD)
        normed_BPD: Tensor = self.norm(tokens_BPD)
        return normed_BPD

    def layer_of(self, name: str) -> int:
        """0 for the patches, i + 1 for block i, depth + 1 for the final norm and the head."""
        check_parameter(self, name)
        block = re.match(r"blocks\.(\d+)\.", name)
        if block:
            return int(block[1]) + 1
        return 0 if name.startswith("stem.") else self.num_layers

    def undecayed(self) -> set[str]:
        """None: biases and norms have one dimension."""
        return set()

    def state_for(self, image_size: int) -> dict[str, Tensor]:
        """The state dict, for the one size the model has.

        Raises:
            RequestError: another size.
        """
        if image_size != self.image_size:
            raise RequestError(
                f"a mixer's token-mixing weights belong to one number of patches: this one takes {self.image_size} "
                f"pixels and cannot be carried to {image_size}; keep the size, or train one for {image_size}"
            )
        return super().state_for(image_size)

    def allow_any_size(self) -> None:
        """Refused: the token-mixing weights belong to one number of patches.

        Raises:
            RequestError: always.
        """
        raise RequestError(
            f"a mixer takes images of one size ({self.image_size} pixels): choose another architecture where views of "
            "several sizes are needed"
        )

    def head_parameters(self) -> tuple[str, ...]:
        """Weight and bias of the head."""
        return ("head.weight", "head.bias") if self.num_classes else ()

    def reset_head(self, num_classes: int) -> None:
        """Replace the head in place by a zero-initialised one."""
        self.head = zero_head(self.width, num_classes, self.norm.weight)
        self.num_classes = num_classes

    def _initialise(self) -> None:
        """LeCun's normal for the patches and the MLPs, as in the paper's code; the head as a ViT's. Biases are zero."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                std = INIT_STD if name == "head" else module.weight[0].numel() ** -0.5
                nn.init.trunc_normal_(module.weight, std=std)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
