"""Text transformer of CLIP (Radford et al. 2021, 2103.00020, section 2.4) and of SigLIP (2303.15343).

Legend of the shape suffixes: B texts, N tokens of a text, D width, E dimension of the shared space.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.block import Block
from vitcore.recipe import TextConfig

TOKEN_STD = 0.02
POSITION_STD = 0.01
_STEP = 8  # lengths that texts are cut to are its multiples, so that few shapes occur


class TextTransformer(nn.Module):
    """Tokens of a text → its place in the space that images share.

    Args:
        config: the architecture.
        embedding: E.
    Raises:
        RequestError: the end of a text cannot be told from the ids of its tokens.
    """

    def __init__(self, config: TextConfig, embedding: int) -> None:
        super().__init__()
        if config.pooling == "end" and config.tokenizer != "clip":
            raise RequestError("model.text.pooling 'end' is for the tokenizer 'clip'; set it to 'last'")
        self.config = config
        self.num_layers = config.depth + 1
        """Layer number of the final norm and the projection; see `layer_of`."""
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.pos_embed = nn.Parameter(torch.empty(config.context, config.width))
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                mlp_ratio=config.mlp_ratio,
                activation=config.activation,
                norm_eps=config.norm_eps,
                causal=config.causal,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.projection = nn.Linear(config.width, embedding, bias=config.projection_bias)
        self._initialise()

    def forward(self, tokens_BN: Tensor) -> Tensor:
        """Embeddings (B, E), not normalised, of token ids (B, N); N may be what `cut` left of the context."""
        text_BND: Tensor = self.token_embedding(tokens_BN) + self.pos_embed[: tokens_BN.shape[1]]
        for block in self.blocks:
            text_BND = block(text_BND)
        normed_BND: Tensor = self.norm(text_BND)
        embedding_BE: Tensor = self.projection(self.pool(normed_BND, tokens_BN))
        return embedding_BE

    def pool(self, text_BND: Tensor, tokens_BN: Tensor) -> Tensor:
        """The token that stands for the text (B, D): in CLIP's vocabulary the end of a text has the highest id."""
        if self.config.pooling == "last":
            return text_BND[:, -1]
        return text_BND[torch.arange(tokens_BN.shape[0], device=tokens_BN.device), tokens_BN.argmax(1)]

    def cut(self, tokens_BN: Tensor) -> Tensor:
        """The tokens without those that nothing depends on: most captions fill a fifth of the context.

        Where a token sees only those before it and the end of the text is read, what follows the longest text of the
        batch changes neither embeddings nor gradients. Cheap for tokens on the CPU; on a device it waits for it.
        """
        if not self.config.causal or self.config.pooling != "end" or not len(tokens_BN):
            return tokens_BN
        longest = int(tokens_BN.argmax(1).max()) + 1
        return tokens_BN[:, : -(-longest // _STEP) * _STEP]

    def layer_of(self, name: str) -> int:
        """0 for the embeddings, i + 1 for block i, depth + 1 for the final norm and the projection.

        Raises:
            KeyError: there is no parameter `name`.
        """
        if name not in dict(self.named_parameters()):
            raise KeyError(name)
        block = re.match(r"blocks\.(\d+)\.", name)
        if block:
            return int(block[1]) + 1
        return self.num_layers if name.startswith(("norm.", "projection.")) else 0

    def undecayed(self) -> set[str]:
        """The position embedding. The token embedding is a weight like any other (2103.00020, section 2.5)."""
        return {"pos_embed"}

    def _initialise(self) -> None:
        """Normal, as the paper's code: deviations shrink with the width, and into the residual with the depth, too."""
        width, depth = self.config.width, self.config.depth
        nn.init.normal_(self.token_embedding.weight, std=TOKEN_STD)
        nn.init.normal_(self.pos_embed, std=POSITION_STD)
        nn.init.normal_(self.projection.weight, std=width**-0.5)
        into_residual = width**-0.5 * (2 * depth) ** -0.5
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.normal_(block.attn.qkv.weight, std=width**-0.5)
            nn.init.normal_(block.attn.proj.weight, std=into_residual)
            nn.init.normal_(block.mlp.fc1.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.fc2.weight, std=into_residual)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
