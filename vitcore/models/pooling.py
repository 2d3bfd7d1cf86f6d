"""Attention pooling, the head of "Scaling Vision Transformers" (2106.04560, section 3.2) and of SigLIP (2303.15343).

Legend of the shape suffixes: B images, P patches, D embedding width, A attention heads, E = D / A channels of a head.
Parameters carry the names timm gives them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcore.models.block import Mlp, hidden_width
from vitcore.recipe.model import Activation


class AttentionPool(nn.Module):
    """One learned probe asks all patches, and an MLP with a residual refines what it gathered.

    Args:
        width: D.
        heads: A; divides D.
        mlp_ratio: hidden width of the MLP over D.
        activation: non-linearity of the MLP.
        norm_eps: epsilon of the norm before the MLP.
    """

    def __init__(self, width: int, heads: int, *, mlp_ratio: float, activation: Activation, norm_eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.latent = nn.Parameter(torch.empty(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, hidden_width(width, mlp_ratio), activation=activation)

    def forward(self, patches_BPD: Tensor) -> Tensor:
        """What the probe gathers of each image, (B, D)."""
        B, P, D = patches_BPD.shape
        asked_11D: Tensor = self.q(self.latent)
        q_BA1E = asked_11D.view(1, self.heads, 1, D // self.heads).expand(B, -1, -1, -1)
        packed: Tensor = self.kv(patches_BPD)
        k_BPAE, v_BPAE = packed.view(B, P, 2, self.heads, D // self.heads).unbind(2)
        mixed_BA1E = F.scaled_dot_product_attention(q_BA1E, k_BPAE.transpose(1, 2), v_BPAE.transpose(1, 2))
        gathered_BD: Tensor = self.proj(mixed_BA1E.flatten(1))
        refined_BD: Tensor = self.mlp(self.norm(gathered_BD))
        return gathered_BD + refined_BD
