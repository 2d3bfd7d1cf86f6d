"""How long a step waits for a checkpoint: handed over against written at once, interleaved."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vitcore.models import build
from vitcore.recipe import VitConfig
from vitcore.train.checkpoint import CheckpointStore, Progress, Saver

MOST = 0.15
ROUNDS, BATCH = 7, 8


def test_checkpoint_stall(report: Callable[[str], None], tmp_path: Path) -> None:
    model = build(VitConfig(patch=16, width=384, depth=12, heads=6), num_classes=1000, image_size=224)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images = torch.randn(BATCH, 3, 224, 224)

    def step() -> None:
        model(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def state() -> dict[str, torch.Tensor]:
        moments = {
            f"optim/{key}/{number}": value
            for number, kept in enumerate(optimizer.state.values())
            for key, value in kept.items()
        }
        return {f"model/{name}": value for name, value in model.state_dict().items()} | moments

    stalls: dict[str, list[float]] = {"on": [], "off": []}
    step()
    savers = {policy: Saver(CheckpointStore(str(tmp_path / policy), "train", 2), policy) for policy in stalls}
    for number in range(1, ROUNDS + 1):
        for policy, saver in savers.items():
            step()
            began = time.perf_counter()
            saver.save(Progress(step=number), state())
            stalls[policy].append(time.perf_counter() - began)
            step()
            saver.wait()
    for saver in savers.values():
        with saver:
            pass
    megabytes = sum(tensor.numel() * tensor.element_size() for tensor in state().values()) / 2**20
    handed, written = (statistics.median(stalls[policy][1:]) for policy in ("on", "off"))
    ratios = sorted(on / off for on, off in zip(stalls["on"][1:], stalls["off"][1:], strict=True))
    report(
        f"checkpoint of {megabytes:.0f} MB: {1000 * handed:.0f} ms handed over, {1000 * written:.0f} ms written at "
        f"once: {handed / written:.1%} ({ratios[0]:.1%} to {ratios[-1]:.1%}), at most {MOST:.0%} wanted"
    )
    assert handed / written <= MOST
