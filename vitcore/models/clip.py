"""An image and a text model with one embedding space: CLIP (Radford et al. 2021, 2103.00020), SigLIP (2303.15343).

Legend of the shape suffixes: B images or texts, C colour channels, H and W pixels, N tokens of a text, D width of an
image's features, E dimension of the shared space.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.classifier import Classifier
from vitcore.models.model import Model
from vitcore.models.text import TextTransformer
from vitcore.recipe import ClipConfig


class Clip(Model):
    """Two towers whose normalised embeddings are compared by their cosine.

    Args:
        config: the architecture.
        image: the image tower, a backbone without a head, built from ``config.image``.
    Attributes:
        image: the image tower.
        text: the text tower.
        logit_scale: logarithm of the inverse temperature.
        logit_bias: what is added to all similarities; none where the configuration has none.
    Raises:
        RequestError: without a projection, the tower's features have another width than the shared space.
    """

    config: ClipConfig

    def __init__(self, config: ClipConfig, image: Classifier) -> None:
        super().__init__()
        if not config.image_projection and image.width != config.width:
            raise RequestError(
                f"the image tower has features of {image.width} channels but the shared space {config.width}: "
                "set model.image_projection, or the width of one to that of the other"
            )
        assert image.num_classes == 0
        self.config, self.num_classes, self.image_size = config, 0, image.image_size
        self.image = image
        self.text = TextTransformer(config.text, config.width)
        self.image_projection = (
            nn.Linear(image.width, config.width, bias=False) if config.image_projection else nn.Identity()
        )
        self.logit_scale = nn.Parameter(torch.full((), math.log(config.scale)))
        self.logit_bias = None if config.bias is None else nn.Parameter(torch.full((), config.bias))
        self.num_layers = max(image.num_layers, self.text.num_layers)
        if isinstance(self.image_projection, nn.Linear):
            nn.init.normal_(self.image_projection.weight, std=image.width**-0.5)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """The embeddings (B, E) of normalised images."""
        return self.embed_images(images_BCHW)

    def embed_images(self, images_BCHW: Tensor) -> Tensor:
        """Embeddings (B, E) of normalised images; float32, of length 1."""
        features_BD: Tensor = self.image(images_BCHW)
        embedding_BE: Tensor = self.image_projection(features_BD)
        return F.normalize(embedding_BE.float(), dim=1)

    def embed_texts(self, tokens_BN: Tensor) -> Tensor:
        """Embeddings (B, E) of token ids (see `vitcore.models.tokenizer`); float32, of length 1."""
        embedding_BE: Tensor = self.text(tokens_BN)
        return F.normalize(embedding_BE.float(), dim=1)

    def layer_of(self, name: str) -> int:
        """The towers end together: their last layer, the projection and the scale are the last of the model.

        Raises:
            KeyError: the model has no such parameter.
        """
        tower, _, rest = name.partition(".")
        if tower == "image":
            return self.num_layers - self.image.num_layers + self.image.layer_of(rest)
        if tower == "text":
            return self.num_layers - self.text.num_layers + self.text.layer_of(rest)
        if name not in dict(self.named_parameters()):
            raise KeyError(name)
        return self.num_layers

    def undecayed(self) -> set[str]:
        """What the towers say."""
        return {f"image.{name}" for name in self.image.undecayed()} | {f"text.{name}" for name in self.text.undecayed()}

    def state_for(self, image_size: int) -> dict[str, Tensor]:
        """The state dict with the image tower's position embeddings interpolated to another image size."""
        tower = {f"image.{name}": tensor for name, tensor in self.image.state_for(image_size).items()}
        return super().state_for(image_size) | tower
