"""DINO (Caron et al. 2021, 2104.14294): a student finds in every view what its momentum teacher says of large ones.

Legend: S slots of a micro-batch, V views of each, G those that the teacher sees, D width of the features, K prototypes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitcore.data.loading.batch import Inputs
from vitcore.models.classifier import Classifier
from vitcore.objectives.heads import DinoHead
from vitcore.objectives.momentum import Momentum, momentum_at
from vitcore.objectives.objective import Objective, Terms
from vitcore.recipe import DinoConfig
from vitcore.world import World


class Dino(Objective):
    """Σ over views t of the teacher, s ≠ t of the student of the cross-entropy H(P_t, P_s), over their number (eq. 3).

    The teacher's answers are centred by a moving average of all ranks' answers and sharpened by a low temperature
    (section 3.1, "Avoiding collapse"). The centre moves between steps: whatever is one step sees the same one.

    Raises:
        RequestError: the architecture cannot take images of several sizes.
    """

    centre_K: Tensor

    def __init__(self, config: DinoConfig, model: Classifier, world: World) -> None:
        model.allow_any_size()
        super().__init__(model, world)
        self._config = config
        head = DinoHead(model.width, config.hidden, config.bottleneck, config.prototypes)
        self.head = head.to(world.device)
        self.teacher = Momentum(model)
        self.teacher_head = Momentum(self.head)
        self.register_buffer("centre_K", torch.zeros(config.prototypes, device=world.device))
        # Sums of this rank's share of a step: no buffers, which would be made equal on all ranks.
        self._told_K = torch.zeros_like(self.centre_K)
        self._rows = self._told_K.new_zeros(1)
        self._temperature = config.teacher_temperature[0]

    @property
    def product(self) -> Classifier:
        """The teacher's backbone, which is better than the student's throughout (section 5.1)."""
        return self.teacher.network

    def forward(self, inputs: Inputs) -> Terms:
        """See `Objective.forward`. ``teacher_entropy`` tells the two ways of collapse: near 0, and near log K."""
        config, weights_S = self._config, inputs.weights_S
        views = [self.normalize(view) for view in inputs.views]
        said_VSK = self.head(_features(self.model, views))
        told_GSK = self.teacher_head(_features(self.teacher, views[: config.global_views]))
        self._told_K += torch.einsum("s,gsk->k", weights_S, told_GSK)
        self._rows += weights_S.sum() * len(told_GSK)
        target_GSK = ((told_GSK - self.centre_K) / self._temperature).softmax(dim=-1)
        answer_VSK = (said_VSK / config.student_temperature).log_softmax(dim=-1)
        # Over all s ≠ t: with all views, less with the same one.
        others_GSK = answer_VSK.sum(0) - answer_VSK[: len(target_GSK)]
        loss_S = -(target_GSK * others_GSK).sum((0, 2)) / (len(target_GSK) * (len(views) - 1))
        entropy_S = torch.special.entr(target_GSK).sum(2).mean(0)
        return Terms(
            loss=(weights_S * loss_S).sum(),
            weight=weights_S.sum(),
            metrics={"teacher_entropy": (weights_S * entropy_S).sum()},
        )

    def before_step(self, step: int, total: int) -> None:
        """The teacher's temperature rises linearly, then stays."""
        first, last = self._config.teacher_temperature
        warmup = self._config.teacher_warmup * total
        self._temperature = first + (last - first) * min(1.0, step / warmup if warmup else 1.0)
        self._told_K.zero_()
        self._rows.zero_()

    def before_update(self, step: int, total: int) -> None:
        """In the first steps the prototypes stay where they are (appendix C)."""
        if step < self._config.freeze_head * total:
            self.head.prototypes.grad = None

    @torch.no_grad()
    def after_step(self, step: int, total: int) -> None:
        """The teacher follows, and so does the centre (eq. 4)."""
        momentum = momentum_at(self._config.momentum, step - 1, total)
        assert isinstance(self.model, Classifier)
        self.teacher.follow(self.model, momentum)
        self.teacher_head.follow(self.head, momentum)
        sums = self.world.sum(torch.cat([self._told_K, self._rows]))
        mean_K = sums[:-1] / sums[-1].clamp_min(1)
        moved_K = torch.lerp(mean_K, self.centre_K, self._config.centre_momentum)
        # A step of images that are not finite is dropped by the loop; the centre must survive it too.
        usable = mean_K.isfinite().all() & (sums[-1] > 0)
        self.centre_K.copy_(torch.where(usable, moved_K, self.centre_K))


def _features(network: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> Tensor:
    """Features (V, S, D) of normalised views; those of one size pass through the network together."""
    found: dict[int, Tensor] = {}
    for size in dict.fromkeys(view.shape[-1] for view in views):
        places = [place for place, view in enumerate(views) if view.shape[-1] == size]
        rows_BD = network(torch.cat([views[place] for place in places]))
        found |= dict(zip(places, rows_BD.chunk(len(places)), strict=True))
    return torch.stack([found[place] for place in range(len(views))])
