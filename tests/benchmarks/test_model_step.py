"""A training step of our ViT against timm's, step by step in turns, and its share of the machine's sgemm."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitcore.models import build
from vitcore.recipe import VitConfig

GOAL = 1.0
NOISE = 0.03
"""Shared cores move the median of the ratios by as much."""
SHAPES = {
    "Ti/4, 32 px, batch 32": (VitConfig(patch=4, width=192, depth=12, heads=3), 32, 32, 12),
    "S/16, 224 px, batch 4": (VitConfig(patch=16, width=384, depth=12, heads=6), 224, 4, 8),
}


def stepper(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        began = time.perf_counter()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began

    return step


def sgemm(side: int = 1536) -> float:
    """FLOP/s of one square product."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    began = time.perf_counter()
    torch.mm(a, b)
    return 2 * side**3 / (time.perf_counter() - began)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("shape", SHAPES)
def test_our_step_against_timms(shape: str, report: Callable[[str], None]) -> None:
    config, size, batch, rounds = SHAPES[shape]
    torch.manual_seed(0)
    ours = build(config, num_classes=100, image_size=size).train()
    theirs = TimmViT(
        img_size=size,
        patch_size=config.patch,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        num_classes=100,
    ).train()
    theirs.load_state_dict(ours.state_dict())
    images, labels = torch.randn(batch, 3, size, size), torch.randint(100, (batch,))
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(ours(images), labels).backward()
    ours.zero_grad(set_to_none=True)
    step, timm_step = stepper(ours, images, labels), stepper(theirs, images, labels)
    for _ in range(2):
        step()
        timm_step()
    mine, ratios, peaks = [], [], []
    for number in range(rounds):
        if number % 2:
            own, other = step(), timm_step()
        else:
            other, own = timm_step(), step()
        mine.append(own)
        ratios.append(other / own)
        peaks.append(sgemm())
    ratio, low, high = statistics.median(ratios), *(sorted(ratios)[i] for i in (rounds // 4, -1 - rounds // 4))
    share = counter.get_total_flops() / statistics.median(mine) / statistics.median(peaks)
    report(
        f"{shape}: {1000 * statistics.median(mine):.0f} ms a step, "
        f"{ratio:.3f} × timm (quartiles {low:.3f} to {high:.3f}; goal {GOAL}), "
        f"{share:.0%} of the sgemm peak of {statistics.median(peaks) / 1e9:.0f} GFLOP/s"
    )
    assert ratio >= GOAL - NOISE
