"""Rollout against the paper's recursion, maps over the patch grid, and the figure."""

from __future__ import annotations

import sys

import pytest
import torch
from matplotlib.colors import to_hex

from vitcore.evals import style
from vitcore.evals.attention import attention_figure, last_block_maps, rollout, rollout_maps
from vitcore.models import VisionTransformer, build
from vitcore.recipe import CnnConfig, DeitConfig, VitConfig

CONFIGS = [
    VitConfig(patch=8, width=48, depth=3, heads=3),
    VitConfig(patch=8, width=48, depth=3, heads=3, pooling="mean"),
    DeitConfig(patch=8, width=48, depth=3, heads=3),
]


def made(config: VitConfig) -> VisionTransformer:
    model = build(config, num_classes=2, image_size=32)
    assert isinstance(model, VisionTransformer)
    return model


def test_rollout_follows_the_papers_recursion() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(1, 2, 5, 5).softmax(-1) for _ in range(3)]
    expected = torch.eye(5)
    for block in maps:
        expected = (0.5 * block[0].mean(0) + 0.5 * torch.eye(5)) @ expected
    torch.testing.assert_close(rollout(maps)[0], expected)
    torch.testing.assert_close(rollout(maps).sum(-1), torch.ones(1, 5))


@pytest.mark.parametrize("config", CONFIGS)
def test_maps_lie_on_the_patch_grid_and_leave_the_model_as_it_was(config: VitConfig) -> None:
    model = made(config).train()
    images = torch.randn(2, 3, 32, 32)
    maps = rollout_maps(model, images)
    assert maps.shape == (2, 4, 4)
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(2))
    assert last_block_maps(model, images).shape == (2, 3, 4, 4)
    assert model.training
    assert not maps.requires_grad


def test_a_patch_that_everything_attends_to_is_the_brightest() -> None:
    maps = torch.full((1, 1, 5, 5), 0.01)
    maps[..., 3] = 0.96
    assert rollout([maps, maps])[0, 0, 1:].argmax() == 2


@pytest.mark.parametrize("config", CONFIGS)
def test_the_figure_tells_right_from_wrong(config: VitConfig) -> None:
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    figure = attention_figure(
        made(config), images, labels=[0, 1, 1], predictions=[0, 0, 1], classes=("sound", "cracked"), columns=2
    )
    assert figure is not None
    figure.canvas.draw()
    titles = [panel.title for panel in figure.axes if panel.get_title()]
    assert [title.get_text() for title in titles] == ["sound", "cracked\nseen as sound", "cracked"]
    assert [to_hex(title.get_color()) for title in titles] == [style.GREEN, style.VERMILION, style.GREEN]
    assert len(figure.axes) == 2 * 2 * 2


def test_models_without_attention_have_no_figure() -> None:
    model = build(CnnConfig(name="resnet18"), num_classes=2, image_size=32)
    images = torch.zeros(1, 3, 32, 32)
    assert attention_figure(model, images, labels=[0], predictions=[0], classes=("a", "b")) is None
    assert attention_figure(made(CONFIGS[0]), images[:0], labels=[], predictions=[], classes=("a", "b")) is None


def test_pyplot_is_not_needed() -> None:
    import subprocess

    code = "import sys, vitcore.evals.attention; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
