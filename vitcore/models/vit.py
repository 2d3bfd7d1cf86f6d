"""Vision transformer: "An Image is Worth 16x16 Words" (Dosovitskiy et al. 2021, 2010.11929).

Legend of the shape suffixes: B images, C colour channels, H and W pixels, Y and X rows and columns of patches,
P = Y · X patches, T prefix tokens (class token, DeiT's distillation token, registers), N = T + P tokens, D embedding
width, A attention heads, K classes.

Parameters carry the names timm gives them, so that a file of our weights is a file of timm weights.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.block import Block
from vitcore.models.classifier import Classifier, check_size, make_head, zero_head
from vitcore.models.pooling import AttentionPool
from vitcore.models.positions import resize_position_embedding, sincos_position_embedding
from vitcore.recipe import VitConfig

INIT_STD = 0.02


class PatchEmbed(nn.Module):
    """Cuts an image (or a map of `channels`) into square patches and projects each linearly (section 3.1, eq. 1)."""

    def __init__(self, patch: int, width: int, *, channels: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch, bias=bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Patch tokens (B, P, D), row by row."""
        plane_BDYX: Tensor = self.proj(images_BCHW)
        return plane_BDYX.flatten(2).transpose(1, 2)


class VisionTransformer(Classifier):
    """ViT with every option of `VitConfig`.

    Pooling ``"mean"`` without a class token and with the final norm before the mean is that of the plain ViT
    (Beyer et al. 2022, 2205.01580).

    Attributes:
        num_prefix: T, tokens before the patches.
        num_read: prefix tokens that the head reads; 0: it reads the patches.
        grid: patches along a side of an image of `image_size`.

    Args:
        config: the architecture.
        num_classes: K.
        image_size: pixels; a multiple of the patch side.
    Raises:
        RequestError: the image size is no multiple of the patch.
    """

    config: VitConfig

    def __init__(self, config: VitConfig, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.config, self.num_classes, self.image_size = config, num_classes, image_size
        self.width = config.width
        self.grid = grid_of(image_size, self.patch_pixels())
        self._any_size = False
        self.num_read = 1 if config.pooling == "token" else 0
        self.num_prefix = self._prefix_tokens()
        self.num_layers = config.depth + 1
        self.patch_embed = self.make_patches()
        if config.has_class_token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        if config.registers:
            self.reg_token = nn.Parameter(torch.empty(1, config.registers, config.width))
        self.pos_embed = self._positions()
        self.pos_drop = nn.Dropout(config.dropout)
        self.norm_pre = nn.LayerNorm(config.width, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(self._block(depth) for depth in range(config.depth))
        norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.norm = nn.Identity() if config.norm_after_pool else norm
        if config.pooling == "map":
            self.attn_pool = AttentionPool(
                config.width,
                config.heads,
                mlp_ratio=config.mlp_ratio,
                activation=config.activation,
                norm_eps=config.norm_eps,
            )
        self.fc_norm = norm if config.norm_after_pool else nn.Identity()
        self.head = make_head(config.width, num_classes)
        self._initialise()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, K); features (B, D) without a head.

        Where the head reads prefix tokens alone, only those leave the last block: its MLP, which would change
        tokens that nobody reads, is most of a block's work. Logits and gradients are the same.
        """
        pooled_BD = self.pool(self.encode(self.embed(images_BCHW), first=self.num_read or None))
        logits_BK: Tensor = self.head(pooled_BD)
        return logits_BK

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        """All tokens after the blocks and the final norm (B, N, D); the first `num_prefix` are no patches.

        With `norm_after_pool` the final norm is yet to come.
        """
        return self.encode(self.embed(images_BCHW))

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """What enters the first block (B, N, D): prefix tokens and patches, with their positions (eq. 1)."""
        positions_1ND = self._positions_for(*images_BCHW.shape[-2:])
        tokens_BPD: Tensor = self.patch_embed(images_BCHW)
        prefix = [token.expand(tokens_BPD.shape[0], -1, -1) for token in self._prefix()]
        if self.config.embed_prefix:
            tokens_BND = torch.cat([*prefix, tokens_BPD], dim=1) + positions_1ND
        else:
            tokens_BND = torch.cat([*prefix, tokens_BPD + positions_1ND], dim=1)
        entering_BND: Tensor = self.norm_pre(self.pos_drop(tokens_BND))
        return entering_BND

    def encode(self, tokens_BND: Tensor, first: int | None = None) -> Tensor:
        """The blocks and the final norm over tokens that `embed` made, all of them or a choice.

        Args:
            tokens_BND: (B, N, D), of any N.
            first: how many leading tokens leave the last block; default: all.
        """
        for block in self.blocks[:-1]:
            tokens_BND = block(tokens_BND)
        normed_BND: Tensor = self.norm(self.blocks[-1](tokens_BND, first))
        return normed_BND

    def pool(self, tokens_BND: Tensor) -> Tensor:
        """What the head reads (B, D) of the tokens that `encode` gives."""
        if self.config.pooling == "token":
            pooled_BD = tokens_BND[:, 0]
        elif self.config.pooling == "mean":
            pooled_BD = tokens_BND[:, self.num_prefix :].mean(dim=1)
        else:
            pooled_BD = self.attn_pool(tokens_BND[:, self.num_prefix :])
        normed_BD: Tensor = self.fc_norm(pooled_BD)
        return normed_BD

    def attention(self, images_BCHW: Tensor) -> list[Tensor]:
        """The softmax weights of every block, first to last, each (B, A, N, N). Meant for evaluation mode."""
        tokens_BND = self.embed(images_BCHW)
        maps = []
        for block in self.blocks:
            assert isinstance(block, Block)
            maps.append(block.attn.weights(block.norm1(tokens_BND)))
            tokens_BND = block(tokens_BND)
        return maps

    def layer_of(self, name: str) -> int:
        """0 for patches, tokens and positions, i + 1 for block i, depth + 1 for the final norm, pooling and head."""
        self.get_parameter(name) if "." in name else self._parameters[name]
        block = re.match(r"blocks\.(\d+)\.", name)
        if block:
            return int(block[1]) + 1
        return self.num_layers if name.startswith(("norm.", "fc_norm.", "attn_pool.", "head")) else 0

    def undecayed(self) -> set[str]:
        """The position embedding, the prefix tokens and the probe of attention pooling."""
        probe = {"attn_pool.latent"} if self.config.pooling == "map" else set()
        return {name for name, _ in self.named_parameters(recurse=False)} | probe

    def state_for(self, image_size: int) -> dict[str, Tensor]:
        """The state dict with position embeddings interpolated to the grid of another image size."""
        state, grid = super().state_for(image_size), grid_of(image_size, self.patch_pixels())
        state["pos_embed"] = resize_position_embedding(state["pos_embed"], grid, prefix=self._placed_prefix())
        return state

    def allow_any_size(self) -> None:
        """Position embeddings are interpolated to the grid of each batch of square images."""
        self._any_size = True

    def head_parameters(self) -> tuple[str, ...]:
        """Weight and bias of the head."""
        return ("head.weight", "head.bias") if self.num_classes else ()

    def reset_head(self, num_classes: int) -> None:
        """Replace the head in place by a zero-initialised one."""
        self.head = zero_head(self.width, num_classes, self.pos_embed)
        self.num_classes = num_classes

    def patch_pixels(self) -> int:
        """Side of what becomes one patch token, in pixels."""
        return self.config.patch

    def make_patches(self) -> nn.Module:
        """The module that turns images (B, 3, H, W) into patch tokens (B, P, D)."""
        return PatchEmbed(self.config.patch, self.config.width, bias=self.config.patch_bias)

    def _prefix_tokens(self) -> int:
        return self.config.has_class_token + self.config.registers

    def _prefix(self) -> list[Tensor]:
        """The prefix tokens (1, 1 or more, D), in the order they enter."""
        tokens: list[Tensor] = [self.cls_token] if self.config.has_class_token else []
        return [*tokens, self.reg_token] if self.config.registers else tokens

    def _placed_prefix(self) -> int:
        """Prefix tokens with a position embedding of their own."""
        return self.num_prefix if self.config.embed_prefix else 0

    def _positions(self) -> nn.Parameter:
        """Fixed ones are a parameter too, so that state dicts of both kinds have the same names."""
        prefix, width = self._placed_prefix(), self.config.width
        if self.config.positions == "sincos":
            return nn.Parameter(sincos_position_embedding(self.grid, width, prefix=prefix), requires_grad=False)
        return nn.Parameter(torch.empty(1, prefix + self.grid**2, width))

    def _positions_for(self, height: int, width: int) -> Tensor:
        """Position embeddings for images of that many pixels (1, N, D); without the prefix where it has none."""
        if self._any_size and height == width:
            grid = grid_of(height, self.patch_pixels())
            return resize_position_embedding(self.pos_embed, grid, prefix=self._placed_prefix())
        check_size(self, height, width)
        return self.pos_embed

    def _block(self, depth: int) -> Block:
        config = self.config
        return Block(
            config.width,
            config.heads,
            mlp_ratio=config.mlp_ratio,
            dropout=config.dropout,
            drop_path=config.drop_path / max(config.depth - 1, 1) * depth,
            activation=config.activation,
            norm_eps=config.norm_eps,
            layer_scale=config.layer_scale,
            qk_norm=config.qk_norm,
        )

    def _initialise(self) -> None:
        """Truncated normal for linear layers, positions and tokens, as DeiT and timm; LeCun's for the patches and the
        probe, as big_vision. Biases are zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)
        projection = self.patch_embed.get_submodule("proj")
        assert isinstance(projection, nn.Conv2d)
        nn.init.trunc_normal_(projection.weight, std=projection.weight[0].numel() ** -0.5)
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
        for _, parameter in self.named_parameters(recurse=False):
            if parameter.requires_grad:
                nn.init.trunc_normal_(parameter, std=INIT_STD)
        if self.config.pooling == "map":
            nn.init.trunc_normal_(self.attn_pool.latent, std=self.width**-0.5)


def grid_of(image_size: int, patch: int) -> int:
    """Patches along a side.

    Raises:
        RequestError: the patch does not divide the image.
    """
    if image_size < patch or image_size % patch:
        below = max(image_size // patch, 1) * patch
        raise RequestError(
            f"image size {image_size} is not a multiple of the patch ({patch} pixels): take {below} or {below + patch}"
        )
    return image_size // patch
