"""Convolutional networks, to compare with."""

from __future__ import annotations

from vitcore.recipe import CnnConfig, Recipe
from vitcore.recipes.vit import vit_tiny_cpu


def cnn_tiny_cpu() -> Recipe:
    """A ResNet-18 by the recipe of `vit_tiny_cpu`: 32-pixel photographs (CIFAR-10) and two CPU cores.

    Paper: He et al. 2016, 1512.03385; the network of table 1, not its recipe
    Command: vit pretrain cnn_tiny_cpu --data URL
    Hardware: two CPU cores
    Hours: 0.3; a rough estimate
    Number: none; chance is 10 % on CIFAR-10

    It shows what the bias of convolutions is worth on few photographs, and is a teacher for `deit_tiny_cpu`.
    """
    return vit_tiny_cpu().model_copy(update={"name": "cnn_tiny_cpu", "model": CnnConfig(name="resnet18", dropout=0.0)})
