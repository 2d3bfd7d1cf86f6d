"""MoCo v3 (Chen et al. 2021, 2104.02057): a view's embedding finds the momentum network's embedding of the other view.

Legend: S slots of this rank, N = S · ranks slots of the global batch, D width of the features, E of the embeddings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from vitcore.data.loading.batch import Inputs
from vitcore.models.classifier import Classifier
from vitcore.objectives.gather import gather
from vitcore.objectives.heads import Projector
from vitcore.objectives.momentum import Momentum, momentum_at
from vitcore.objectives.objective import Coupled, Embeddings, Terms
from vitcore.recipe import MocoConfig
from vitcore.world import World


class Query(nn.Module):
    """Projector and predictor (section 4.3): what asks. Keys have a momentum copy of the projector alone."""

    def __init__(self, width: int, config: MocoConfig, world: World) -> None:
        super().__init__()
        self.projector = Projector((width, config.hidden, config.hidden, config.width), world)
        self.predictor = Projector((config.width, config.hidden, config.width), world)

    def forward(self, features_SD: Tensor, weights_S: Tensor) -> Tensor:
        """Features (S, D) to queries (S, E)."""
        queries_SE: Tensor = self.predictor(self.projector(features_SD, weights_S), weights_S)
        return queries_SE


class Moco(Coupled):
    """ctr(q₁, k₂) + ctr(q₂, k₁) (algorithm 1). The model is the encoder that learns by gradient.

    Micro-batches embed as far as the backbone's features; projectors and predictor, whose batch norms look at the
    global batch, belong to the coupled half, so that no micro-batch shows in the result.
    """

    def __init__(self, config: MocoConfig, model: Classifier, world: World) -> None:
        super().__init__(model, world)
        self._config = config
        if config.freeze_patches and isinstance(patches := getattr(model, "patch_embed", None), nn.Module):
            patches.requires_grad_(False)  # section 4.2; stems of other architectures learn
        self.query = Query(model.width, config, world).to(world.device)
        self.momentum_model = Momentum(model)
        self.momentum_projector = Momentum(self.query.projector)

    def forward(self, inputs: Inputs) -> Embeddings:
        """Features (S, D) of both views by the model, then by the momentum network; and the weights of the heads."""
        views = [self.normalize(view) for view in inputs.views]
        rows = [network(view) for network in (self.model, self.momentum_model) for view in views]
        return Embeddings(tuple(rows), tuple(self.query.parameters()))

    def couple(self, embeddings: Embeddings, weights_S: Tensor) -> Terms:
        """See `Coupled.couple`."""
        asked_1, asked_2, told_1, told_2 = embeddings.rows
        names = (name for name, _ in self.query.named_parameters())
        heads = dict(zip(names, embeddings.shared, strict=True))
        queries = [functional_call(self.query, heads, (rows_SD, weights_S)) for rows_SD in (asked_1, asked_2)]
        keys = [gather(self.momentum_projector(rows_SD, weights_S), self.world) for rows_SD in (told_1, told_2)]
        counted_N = gather(weights_S, self.world) > 0
        loss_1, found_1 = self._contrast(queries[0], keys[1], counted_N)
        loss_2, found_2 = self._contrast(queries[1], keys[0], counted_N)
        return Terms(
            loss=(weights_S * (loss_1 + loss_2)).sum(),
            weight=weights_S.sum(),
            metrics={"found": (weights_S * (found_1 + found_2) / 2).sum()},
        )

    def after_step(self, step: int, total: int) -> None:
        """Model and projector are followed."""
        momentum = momentum_at(self._config.momentum, step - 1, total)
        assert isinstance(self.model, Classifier)
        self.momentum_model.follow(self.model, momentum)
        self.momentum_projector.follow(self.query.projector, momentum)

    def _contrast(self, queries_SE: Tensor, keys_NE: Tensor, counted_N: Tensor) -> tuple[Tensor, Tensor]:
        """2τ · the cross-entropy of the own key among all (eq. 1), and whether it is the nearest; (S) each."""
        slots, temperature = len(queries_SE), self._config.temperature
        own_S = torch.arange(slots, device=queries_SE.device) + slots * self.world.rank
        logits_SN = F.normalize(queries_SE) @ F.normalize(keys_NE).T / temperature
        others_SN = ~counted_N & (torch.arange(len(keys_NE), device=own_S.device) != own_S[:, None])
        logits_SN = logits_SN.masked_fill(others_SN, -torch.inf)
        loss_S = 2 * temperature * F.cross_entropy(logits_SN, own_S, reduction="none")
        return loss_S, (logits_SN.detach().argmax(1) == own_S).float()
