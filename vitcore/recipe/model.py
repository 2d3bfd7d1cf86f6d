"""Architectures: one configuration a family, told apart by `kind`."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from vitcore.recipe.config import Config

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
"""``gelu`` is exact (erf); ``gelu_tanh`` its tanh approximation; ``quick_gelu`` is x · sigmoid(1.702 x), that of
OpenAI's CLIP."""


class NormalizeConfig(Config):
    """Fields every image model shares: the statistics its input is normalised with."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Channel means subtracted from pixels in [0, 1]."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Channel deviations pixels are divided by."""

    @field_validator(
        *("patch", "width", "depth", "heads", "token_width"),
        *("widths", "depths", "mlp_ratios", "reductions"),
        check_fields=False,
    )
    @classmethod
    def _positive(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if min(value if isinstance(value, tuple) else (value,)) < 1:
            raise ValueError("must be at least 1")
        return value

    @field_validator("dropout", "drop_path", check_fields=False)
    @classmethod
    def _rate(cls, value: float) -> float:
        if not 0 <= value < 1:
            raise ValueError("must be a rate from 0 to below 1")
        return value


def _check_heads(width: int, heads: int) -> None:
    if width < 1 or heads < 1 or width % heads:
        raise ValueError(f"width {width} is not divisible by {heads} heads")


class VitConfig(NormalizeConfig):
    """Vision transformer (2010.11929)."""

    kind: Literal["vit"] = "vit"
    patch: int = 16
    """Side of a square patch, in pixels."""
    width: int = 192
    """Embedding dimension D."""
    depth: int = 12
    """Transformer blocks."""
    heads: int = 3
    """Attention heads; `width` must be divisible by it."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over D."""
    pooling: Literal["token", "mean", "map"] = "token"
    """What the head reads: the class token, the mean of the patch tokens, or an attention pooling over them
    (multi-head attention pooling, 2106.04560)."""
    class_token: bool | None = None
    """Whether there is a class token; default: only where the head reads it."""
    positions: Literal["learned", "sincos"] = "learned"
    """Position embeddings: learned, or fixed sines and cosines of both axes (2104.02057, 2205.01580)."""
    registers: int = 0
    """Register tokens beside the patches, read by nobody (2309.16588)."""
    embed_prefix: bool = True
    """Whether the class token and the registers have position embeddings of their own."""
    layer_scale: float | None = None
    """LayerScale (2103.17239): initial factor on every residual branch; none: no factors."""
    qk_norm: bool = False
    """Whether queries and keys are normalised (2302.05442)."""
    pre_norm: bool = False
    """A norm before the first block, as in CLIP."""
    norm_after_pool: bool = False
    """Whether the final norm comes after the pooling rather than before it."""
    activation: Activation = "gelu"
    """Non-linearity of the MLP."""
    norm_eps: float = 1e-6
    """Epsilon of the norms."""
    patch_bias: bool = True
    """Whether the patch projection has a bias."""
    dropout: float = 0.0
    """Dropout after the position embedding, the attention projection and in the MLP."""
    drop_path: float = 0.0
    """Stochastic depth (1603.09382): rate of the last block, growing linearly from 0."""

    @property
    def has_class_token(self) -> bool:
        """Whether the model has a class token."""
        return self.pooling == "token" if self.class_token is None else self.class_token

    @field_validator("registers")
    @classmethod
    def _not_negative(cls, value: int) -> int:
        if value < 0:
            raise ValueError("must be 0 or more")
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> VitConfig:
        _check_heads(self.width, self.heads)
        if self.pooling == "token" and not self.has_class_token:
            raise ValueError("pooling 'token' reads a class token; set class_token, or pooling to 'mean' or 'map'")
        if self.positions == "sincos" and self.width % 4:
            raise ValueError(f"sin-cos positions need a width divisible by 4, not {self.width}")
        return self


class DeitConfig(VitConfig):
    """ViT with a distillation token and a second head (2012.12877); at test time the two heads are averaged."""

    kind: Literal["deit"] = "deit"  # type: ignore[assignment]
    pooling: Literal["token"] = "token"


class HybridConfig(VitConfig):
    """ViT over the feature map of a convolutional stem, a ResNet v2 cut short (2010.11929, section 3.1, "hybrid")."""

    kind: Literal["hybrid"] = "hybrid"  # type: ignore[assignment]
    stem: tuple[int, ...] = (3, 4, 9)
    """Blocks in each stage of the stem; none: its first convolution and pooling alone. The map is 4 times smaller than
    the image after the first stage, and halves with every further one."""
    patch: int = 1
    """Side of a square patch of that map, in its cells."""


class CnnConfig(NormalizeConfig):
    """A convolutional network by name: ``efficientnet_lite0``, most of torchvision's classifiers (``resnet50``), or one
    of timm's that take images of any size (``timm/regnety_160``)."""

    kind: Literal["cnn"] = "cnn"
    name: str = "efficientnet_lite0"
    """Name of the architecture."""
    dropout: float = 0.2
    """Dropout before the head."""


class MixerConfig(NormalizeConfig):
    """MLP-Mixer (2105.01601): patches mixed by MLPs alone, along the tokens and along the channels."""

    kind: Literal["mixer"] = "mixer"
    patch: int = 16
    """Side of a square patch, in pixels."""
    width: int = 768
    """Channels of a token."""
    depth: int = 12
    """Mixer blocks."""
    token_ratio: float = 0.5
    """Hidden width of the token-mixing MLP over `width`."""
    channel_ratio: float = 4.0
    """Hidden width of the channel-mixing MLP over `width`."""
    dropout: float = 0.0
    """Dropout in the MLPs."""
    drop_path: float = 0.0
    """Stochastic depth: rate of the last block, growing linearly from 0."""


class T2tConfig(NormalizeConfig):
    """Tokens-to-Token ViT (2101.11986): overlapping tokens gathered thrice, then a deep and narrow transformer."""

    kind: Literal["t2t"] = "t2t"
    token_width: int = 64
    """Width inside the tokens-to-token module."""
    width: int = 384
    """Embedding dimension D of the backbone."""
    depth: int = 14
    """Transformer blocks of the backbone."""
    heads: int = 6
    """Attention heads of the backbone; `width` must be divisible by it."""
    mlp_ratio: float = 3.0
    """Hidden width of the backbone's MLP over D."""
    dropout: float = 0.0
    """Dropout after the position embedding, the attention projection and in the MLP."""
    drop_path: float = 0.0
    """Stochastic depth: rate of the last block, growing linearly from 0."""

    @model_validator(mode="after")
    def _heads_divide(self) -> T2tConfig:
        _check_heads(self.width, self.heads)
        return self


class PvtConfig(NormalizeConfig):
    """Pyramid vision transformer v2 (2106.13797): four stages, each at half the resolution of the one before."""

    kind: Literal["pvt"] = "pvt"
    widths: tuple[int, int, int, int] = (64, 128, 320, 512)
    """Channels of each stage."""
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Blocks of each stage."""
    heads: tuple[int, int, int, int] = (1, 2, 5, 8)
    """Attention heads of each stage."""
    mlp_ratios: tuple[int, int, int, int] = (8, 8, 4, 4)
    """Hidden width of the MLP over the channels, of each stage."""
    reductions: tuple[int, int, int, int] = (8, 4, 2, 1)
    """How many times smaller the map of keys and values is, along each side, in each stage."""
    linear: bool = False
    """Linear attention: keys and values are pooled to 7 × 7 instead."""
    dropout: float = 0.0
    """Dropout after the attention projection and in the MLP."""
    drop_path: float = 0.0
    """Stochastic depth: rate of the last block, growing linearly from 0."""

    @model_validator(mode="after")
    def _heads_divide(self) -> PvtConfig:
        for width, heads in zip(self.widths, self.heads, strict=True):
            _check_heads(width, heads)
        return self


class TextConfig(Config):
    """Text transformer of CLIP (2103.00020, section 2.4)."""

    tokenizer: Literal["clip", "siglip"] = "clip"
    """``clip``: its byte-pair encoding, which comes with open_clip. ``siglip``: the sentence pieces of SigLIP's public
    weights, from the hub or its cache."""
    context: int = 77
    """Tokens of a text; longer ones are cut."""
    vocabulary: int = 49408
    """Tokens there are."""
    width: int = 512
    """Embedding dimension."""
    depth: int = 12
    """Transformer blocks."""
    heads: int = 8
    """Attention heads; `width` must be divisible by it."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over `width`."""
    causal: bool = True
    """Whether a token sees only those before it."""
    pooling: Literal["end", "last"] = "end"
    """Which token stands for the text: that of the end of the text, or the last of the context."""
    projection_bias: bool = False
    """Whether the projection into the shared space has a bias."""
    activation: Activation = "gelu"
    """Non-linearity of the MLP."""
    norm_eps: float = 1e-5
    """Epsilon of the norms."""

    @model_validator(mode="after")
    def _heads_divide(self) -> TextConfig:
        _check_heads(self.width, self.heads)
        return self


class AskedConfig(NormalizeConfig):
    """A network of somebody else's making that is only asked, never built or trained here: a teacher."""

    kind: Literal["asked"] = "asked"
    name: str
    """The reference it was had by."""


BackboneConfig = Annotated[
    VitConfig | DeitConfig | HybridConfig | CnnConfig | MixerConfig | T2tConfig | PvtConfig | AskedConfig,
    Field(discriminator="kind"),
]
"""An architecture that turns an image into features, and with a head into logits."""


class ClipConfig(Config):
    """An image and a text model with one embedding space (2103.00020)."""

    kind: Literal["clip"] = "clip"
    width: int = 512
    """Dimension of the shared space."""
    image: BackboneConfig = VitConfig(patch=32, width=768, heads=12, pre_norm=True, norm_eps=1e-5, patch_bias=False)
    """The image tower."""
    text: TextConfig = TextConfig()
    """The text tower."""
    image_projection: bool = True
    """Whether image features are projected into the shared space; without, their width is the space's."""
    scale: float = 1 / 0.07
    """Initial inverse temperature; learned from there."""
    bias: float | None = None
    """Initial bias of the similarities, which the sigmoid loss learns (2303.15343); none: no bias."""

    @property
    def mean(self) -> tuple[float, float, float]:
        """Channel means of the image tower."""
        return self.image.mean

    @property
    def std(self) -> tuple[float, float, float]:
        """Channel deviations of the image tower."""
        return self.image.std

    @field_validator("scale")
    @classmethod
    def _scale_above_zero(cls, value: float) -> float:
        if not (value > 0 and math.isfinite(value)):
            raise ValueError("must be above 0")
        return value


class ParentConfig(Config):
    """The architecture of the model that training starts from; fields given here replace the parent's."""

    kind: Literal["parent"] = "parent"
    drop_path: float | None = None
    """Stochastic depth while fine-tuning; default: the parent's."""
    pooling: Literal["token", "mean"] | None = None
    """What the head of a ViT reads; default: as in the parent. MAE's backbones are fine-tuned with the mean."""


ModelConfig = Annotated[
    VitConfig | DeitConfig | HybridConfig | CnnConfig | MixerConfig | T2tConfig | PvtConfig | AskedConfig | ClipConfig,
    Field(discriminator="kind"),
]
"""An architecture that can be built."""
