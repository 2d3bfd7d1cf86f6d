"""Images and captions find each other: CLIP (Radford et al. 2021, 2103.00020), SigLIP (Zhai et al. 2023, 2303.15343).

Legend: S slots of this rank, G slots of all ranks, E dimension of the shared space.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vitcore.data.loading.batch import Inputs
from vitcore.models.clip import Clip
from vitcore.models.tokenizer import Tokenizer
from vitcore.objectives.gather import gather
from vitcore.objectives.objective import Coupled, Embeddings, Terms
from vitcore.recipe import ContrastConfig
from vitcore.world import World

TIE = 1e-4
"""Similarities this close are equal: those of one caption, where it occurs twice in a batch."""


class Pairs(NamedTuple):
    """Images and captions that belong together, a pair a row."""

    image_SE: Tensor
    text_SE: Tensor
    weights_S: Tensor
    """0: no pair"""


class Contrast(Coupled):
    """The contrastive loss of an image and a text model over the global batch.

    With ``lock_image`` the image tower stays as it is and in evaluation mode (locked-image tuning, 2111.07991,
    section 4); its projection, where there is one, is learned.

    A slot without a caption has weight 0.
    """

    def __init__(self, config: ContrastConfig, model: Clip, world: World) -> None:
        super().__init__(model, world)
        self._config = config
        self.tokenize = Tokenizer(model.config.text)
        """Of the text tower; remembers what it has seen."""
        if config.lock_image:
            model.image.requires_grad_(False)
            model.image.eval()

    @property
    def _clip(self) -> Clip:
        assert isinstance(self.model, Clip)
        return self.model

    def forward(self, inputs: Inputs) -> Embeddings:
        """Rows: image and text embeddings (S, E), and which slots have a caption (S, 1). Shared: the inverse
        temperature, and the bias where there is one.
        """
        captions, clip = inputs.captions, self._clip
        assert captions is not None, "batches without captions"
        device = inputs.weights_S.device
        tokens_SN = clip.text.cut(self.tokenize(captions)).to(device, non_blocking=True)
        image_SE = clip.embed_images(self.normalize(inputs.images_SCHW))
        told_S1 = torch.tensor([[float(bool(caption))] for caption in captions]).to(device, non_blocking=True)
        return Embeddings((image_SE, clip.embed_texts(tokens_SN), told_S1), scale_and_bias(clip))

    def couple(self, embeddings: Embeddings, weights_S: Tensor) -> Terms:
        """See `Coupled.couple`. Metrics: ``top1``, how often an image's own caption is the nearest of the global batch,
        and the ``scale``.
        """
        image_SE, text_SE, told_S1 = embeddings.rows
        pairs = Pairs(image_SE, text_SE, weights_S * told_S1.detach()[:, 0])
        loss_S, hit_S = contrast(self._config.loss, pairs, embeddings.shared, self.world)
        weight = pairs.weights_S.sum()
        return Terms(
            loss=(pairs.weights_S * loss_S).sum(),
            weight=weight,
            metrics={"top1": (pairs.weights_S * hit_S).sum(), "scale": weight * embeddings.shared[0].detach()},
        )

    @torch.no_grad()
    def after_step(self, step: int, total: int) -> None:
        """Keep the inverse temperature below its bound (2103.00020, section 2.5)."""
        self._clip.logit_scale.clamp_(max=math.log(self._config.max_scale))

    def train(self, mode: bool = True) -> Contrast:
        """Training mode, or evaluation mode; a locked tower stays in the latter."""
        super().train(mode)
        if self._config.lock_image:
            self._clip.image.eval()
        return self

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the towers: what tokenises texts is no graph, and would be traced anew for every batch."""
        self._clip.image.compile(*args, **kwargs)
        self._clip.text.compile(*args, **kwargs)


def scale_and_bias(model: Clip) -> tuple[Tensor, ...]:
    """The model's inverse temperature and, where it has one, its bias."""
    scale = model.logit_scale.exp()
    return (scale,) if model.logit_bias is None else (scale, model.logit_bias * 1)


def contrast(loss: str, pairs: Pairs, shared: tuple[Tensor, ...], world: World) -> tuple[Tensor, Tensor]:
    """The loss of each of this rank's pairs against those of all ranks, with a gradient that reaches all ranks.

    Args:
        loss: ``softmax`` (2103.00020, figure 3: the mean of a cross-entropy over captions and one over images) or
            ``sigmoid`` (2303.15343, eq. 1: a binary cross-entropy of every pair of image and caption, summed over the
            captions).
        pairs: of this rank, as many on every rank; those of weight 0 are nobody's negatives.
        shared: inverse temperature and, if there is one, bias.
        world: this process's place.
    Returns:
        Loss and whether the image's own caption is the nearest, one value [S] a pair each.
    """
    everybody = _gather(pairs, world)
    scale, bias = shared[0], shared[1] if len(shared) > 1 else 0.0
    count = len(pairs.weights_S)
    own_S = torch.arange(count, device=pairs.weights_S.device) + world.rank * count
    absent_SG = (everybody.weights_S == 0).repeat(count, 1)
    absent_SG[torch.arange(count), own_S] = False  # a row without a pair has a finite loss, which its weight drops
    to_text_SG = scale * pairs.image_SE @ everybody.text_SE.T + bias
    nearest_S = to_text_SG.detach().masked_fill(absent_SG, -math.inf).amax(1)
    hit_S = (to_text_SG.detach().gather(1, own_S[:, None])[:, 0] >= nearest_S - TIE).float()
    if loss == "sigmoid":
        belongs_SG = F.one_hot(own_S, absent_SG.shape[1])
        each_SG = -F.logsigmoid((2 * belongs_SG - 1) * to_text_SG)
        return each_SG.masked_fill(absent_SG, 0).sum(1), hit_S
    to_image_SG = scale * pairs.text_SE @ everybody.image_SE.T + bias
    captions_S, images_S = (
        F.cross_entropy(logits_SG.masked_fill(absent_SG, -math.inf), own_S, reduction="none")
        for logits_SG in (to_text_SG, to_image_SG)
    )
    return (captions_S + images_S) / 2, hit_S


def _gather(pairs: Pairs, world: World) -> Pairs:
    """The pairs [G] of all ranks; one collective."""
    if not world.distributed:
        return pairs
    width = pairs.image_SE.shape[1]
    packed = gather(torch.cat([pairs.image_SE, pairs.text_SE, pairs.weights_S[:, None]], 1), world)
    return Pairs(packed[:, :width], packed[:, width : 2 * width], packed[:, -1].detach())
