"""DeiT's distillation (2012.12877) against its equations written down plainly."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vitcore.data.loading.batch import Inputs
from vitcore.errors import RequestError
from vitcore.models import build as build_model
from vitcore.models.classifier import Classifier
from vitcore.models.deit import DeiT
from vitcore.objectives import Frozen
from vitcore.objectives.distill import Distill
from vitcore.recipe import DeitConfig, DistillConfig, VitConfig
from vitcore.world import World

CPU = torch.device("cpu")
K, S = 4, 6
COUNTS = [10, 20, 30, 40]
SHAPE: dict[str, Any] = {"patch": 8, "width": 32, "depth": 1, "heads": 2}


def build(kind: type[VitConfig], seed: int, spread: float = 0.3, **config: Any) -> Classifier:
    torch.manual_seed(seed)
    model = build_model(kind(**SHAPE, **config), num_classes=K, image_size=16)
    with torch.no_grad():
        for parameter in model.parameters():  # opinions, and a different one of each head
            parameter.add_(torch.randn_like(parameter) * spread)
    return model


def student(seed: int = 0) -> Classifier:
    return build(DeitConfig, seed)


def teacher() -> Classifier:
    return build(VitConfig, 9, mean=(0.1, 0.2, 0.3), std=(0.9, 0.8, 0.7))


def inputs() -> Inputs:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(K, (S,), generator=generator)
    return Inputs(
        torch.rand(S, 3, 16, 16, generator=generator),
        labels,
        labels.flip(0),
        torch.rand(S, generator=generator),
        torch.tensor([1.0, 1, 1, 0, 1, 1]),
    )


def log_softmax(row: Tensor) -> list[float]:
    values = [float(v) for v in row]
    largest = max(values)
    total = largest + math.log(sum(math.exp(v - largest) for v in values))
    return [v - total for v in values]


def plain_loss(
    config: DistillConfig, class_SK: Tensor, distill_SK: Tensor, teacher_SK: Tensor, given: Inputs
) -> tuple[float, float]:
    """Σ over slots of the labels' term and of the teacher's, number by number."""
    weight = [sum(COUNTS) / (K * n) for n in COUNTS] if config.class_weight == "balanced" else [1.0] * K
    labels = follows = 0.0
    for s in range(S):
        lam, own, other = float(given.lam_S[s]), int(given.labels_S[s]), int(given.partners_S[s])
        logp = log_softmax(class_SK[s])
        for k in range(K):
            target = lam * (k == own) + (1 - lam) * (k == other)
            target = target * (1 - config.label_smoothing) + config.label_smoothing / K
            labels -= float(given.weights_S[s]) * weight[k] * target * logp[k]
        if config.mode == "hard":  # eq. 3: the teacher's decision is a true label
            decision = int(teacher_SK[s].argmax())
            follows -= float(given.weights_S[s]) * weight[decision] * log_softmax(distill_SK[s])[decision]
        else:  # eq. 2: tau² KL(teacher at tau || student at tau)
            q = log_softmax(teacher_SK[s] / config.tau)
            p = log_softmax(distill_SK[s] / config.tau)
            kl = sum(math.exp(q[k]) * (q[k] - p[k]) for k in range(K))
            follows += float(given.weights_S[s]) * config.tau**2 * kl
    return labels, follows


@pytest.mark.parametrize("kind", [DeitConfig, VitConfig])
@pytest.mark.parametrize(
    "config",
    [
        DistillConfig(),
        DistillConfig(alpha=0.3, label_smoothing=0.1, class_weight="balanced"),
        DistillConfig(mode="soft", alpha=0.7, tau=2.0),
        DistillConfig(alpha=0.0),
        DistillConfig(alpha=1.0, mode="soft"),
    ],
)
def test_equals_the_paper_with_and_without_a_distillation_token(config: DistillConfig, kind: type[VitConfig]) -> None:
    model, given, frozen = build(kind, 0), inputs(), teacher()
    objective = Distill(config, model, Frozen(frozen, CPU), COUNTS, World())
    terms = objective(given)
    with torch.no_grad():
        pixels = (given.images_SCHW - 0.5) / 0.5
        class_SK, distill_SK = model.heads(pixels) if isinstance(model, DeiT) else (model(pixels),) * 2
        mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (frozen.config.mean, frozen.config.std))
        teacher_SK = frozen((given.images_SCHW - mean) / std)
    labels, follows = plain_loss(config, class_SK, distill_SK, teacher_SK, given)
    assert terms.loss.item() == pytest.approx((1 - config.alpha) * labels + config.alpha * follows, rel=1e-4)
    assert terms.weight.item() == 5
    assert terms.metrics["loss_labels"].item() == pytest.approx(labels, rel=1e-4)
    assert terms.metrics["loss_teacher"].item() == pytest.approx(follows, rel=1e-4)
    weights = given.weights_S
    agree = (weights * (distill_SK.argmax(1) == teacher_SK.argmax(1))).sum().item()
    assert terms.metrics["teacher_agreement"].item() == agree
    dominant = torch.where(given.lam_S >= 0.5, given.labels_S, given.partners_S)
    hits = (weights * ((class_SK + distill_SK).argmax(1) == dominant)).sum().item()
    assert terms.metrics["top1"].item() == hits


def test_each_head_learns_from_its_own_term() -> None:
    for alpha, silent in ((0.0, "head_dist"), (1.0, "head")):
        model = student()
        Distill(DistillConfig(alpha=alpha), model, Frozen(teacher(), CPU), COUNTS, World())(inputs()).loss.backward()
        grads = {name: model.get_parameter(f"{name}.weight").grad for name in ("head", "head_dist")}
        for name, grad in grads.items():
            assert grad is not None
            assert bool((grad != 0).any()) == (name != silent)


def test_the_teacher_learns_nothing_and_appears_nowhere() -> None:
    frozen = teacher().train()
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    objective = Distill(DistillConfig(), student(), Frozen(frozen, CPU), COUNTS, World())
    objective.train()
    assert not frozen.training
    objective(inputs()).loss.backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen.parameters())
    theirs = {id(parameter) for parameter in frozen.parameters()}
    assert not theirs & {id(parameter) for parameter in objective.parameters()}
    assert set(objective.state_dict()) == {f"model.{name}" for name in objective.model.state_dict()}
    assert not any(module is frozen for module in objective.modules())
    for name, tensor in frozen.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_the_teachers_share_lies_between_zero_and_one(alpha: float) -> None:
    with pytest.raises(RequestError, match=r"objective\.alpha .* between 0 and 1"):
        Distill(DistillConfig(alpha=alpha), student(), Frozen(teacher(), CPU), COUNTS, World())
