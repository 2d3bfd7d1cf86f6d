"""Cross-entropy against torch's own, and rows without weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vitcore.data.loading.batch import Inputs
from vitcore.errors import RequestError
from vitcore.models import build as build_model
from vitcore.models.classifier import Classifier
from vitcore.objectives import build
from vitcore.objectives.classify import Classify
from vitcore.recipe import ClassifyConfig, DistillConfig, VitConfig
from vitcore.world import World

K, S = 5, 12
COUNTS = [40, 10, 5, 25, 20]


def network(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return build_model(
        VitConfig(patch=8, width=32, depth=1, heads=2, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)),
        num_classes=K,
        image_size=16,
    )


def inputs(*, mixed: bool = False, seed: int = 1) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(K, (S,), generator=generator)
    lam = torch.rand(S, generator=generator) if mixed else torch.ones(S)
    return Inputs(
        torch.rand(S, 3, 16, 16, generator=generator), labels, labels.flip(0) if mixed else labels, lam, torch.ones(S)
    )


def padded(real: Inputs, rows: int, pixels: float) -> Inputs:
    """The inputs with rows of weight 0 appended and their labels missing."""

    def longer(tensor: Tensor, value: float) -> Tensor:
        return torch.cat([tensor, torch.full((rows, *tensor.shape[1:]), value, dtype=tensor.dtype)])

    return Inputs(
        longer(real.images_SCHW, pixels),
        longer(real.labels_S, -1),
        longer(real.partners_S, -1),
        longer(real.lam_S, 1),
        longer(real.weights_S, 0),
    )


def gradients(model: Classifier) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def classify(**config: Any) -> Classify:
    return Classify(ClassifyConfig(**config), network(), COUNTS, World())


def reference_logits(model: Classifier, images: Tensor) -> Tensor:
    mean, std = torch.tensor(model.config.mean), torch.tensor(model.config.std)
    return model((images - mean[None, :, None, None]) / std[None, :, None, None])


@pytest.mark.parametrize("weight", ["none", "balanced"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True])
def test_equals_torchs_cross_entropy(mixed: bool, smoothing: float, weight: str) -> None:
    objective = classify(label_smoothing=smoothing, class_weight=weight)
    given = inputs(mixed=mixed)
    terms = objective(given)
    terms.loss.backward()
    ours = gradients(objective.model)

    logits = reference_logits(objective.model, given.images_SCHW)
    own, other = F.one_hot(given.labels_S, K).float(), F.one_hot(given.partners_S, K).float()
    lam = given.lam_S[:, None]
    per_class = torch.tensor([100 / (K * n) for n in COUNTS]) if weight == "balanced" else None
    target = given.labels_S if not mixed else lam * own + (1 - lam) * other
    loss = F.cross_entropy(logits, target, weight=per_class, label_smoothing=smoothing, reduction="sum")
    loss.backward()

    assert terms.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert terms.weight.item() == S
    for name, gradient in gradients(objective.model).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5)
    dominant = torch.where(given.lam_S >= 0.5, given.labels_S, given.partners_S)
    assert terms.metrics["top1"].item() == (logits.argmax(1) == dominant).sum().item()
    assert not terms.metrics["top1"].requires_grad


@pytest.mark.parametrize("pixels", [0.0, 1e4])
@pytest.mark.parametrize("kind", ["classify", "distill"])
def test_rows_of_weight_zero_contribute_nothing(kind: str, pixels: float) -> None:
    config = ClassifyConfig(label_smoothing=0.1) if kind == "classify" else DistillConfig(mode="soft")
    objective = build(config, network(), teacher=network(1), class_counts=COUNTS, world=World())
    results = []
    for given in (inputs(mixed=True), padded(inputs(mixed=True), 4, pixels)):
        terms = objective(given)
        terms.loss.backward()
        results.append((terms, gradients(objective.model)))
    (alone, ours), (longer, theirs) = results
    assert longer.weight.item() == alone.weight.item() == S
    torch.testing.assert_close(longer.loss, alone.loss)
    assert longer.metrics.keys() == alone.metrics.keys()
    for name in alone.metrics:
        torch.testing.assert_close(longer.metrics[name], alone.metrics[name])
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_a_batch_without_any_weight_has_zero_gradients() -> None:
    objective = classify()
    empty = padded(inputs(), 3, 0.0)
    empty = Inputs(*(getattr(empty, name)[-3:] for name in Inputs.__slots__[:5]))
    terms = objective(empty)
    terms.loss.backward()
    assert terms.loss.item() == 0
    assert terms.weight.item() == 0
    found = gradients(objective.model)
    assert found
    assert all((gradient == 0).all() for gradient in found.values())


def test_half_precision_logits_are_compared_in_fp32() -> None:
    objective = classify(label_smoothing=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = objective(inputs())
    assert terms.loss.dtype == torch.float32
    assert terms.loss.item() == pytest.approx(objective(inputs()).loss.item(), rel=0.02)


def test_predicts_logits_of_pixels() -> None:
    objective = classify().eval()
    images = inputs().images_SCHW
    torch.testing.assert_close(objective.predict(images), reference_logits(objective.model, images))


def test_distillation_without_a_teacher_is_a_wrong_request() -> None:
    with pytest.raises(RequestError, match="--teacher"):
        build(DistillConfig(), network(), teacher=None, class_counts=COUNTS, world=World())
