"""Convolutional classifiers by name: EfficientNet-Lite0, the teacher that needs no download; torchvision's; timm's."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.classifier import Classifier
from vitcore.recipe import CnnConfig

LITE0 = "efficientnet_lite0"
LITE0_MEAN = (127 / 255, 127 / 255, 127 / 255)
LITE0_STD = (128 / 255, 128 / 255, 128 / 255)

TIMM = "timm/"
"""What the names of timm's architectures begin with."""

# Transformers belong to `kind: vit`; the others change their input, return several outputs, have no linear head or
# load only with metadata that safetensors does not carry.
_UNFIT = ("vit_", "swin_", "maxvit_", "inception_", "googlenet", "squeezenet", "mnasnet")


class Head(nn.Linear):
    """The last linear layer, with dropout on what it reads; its parameters are named as the layer it replaces."""

    def __init__(self, features: int, num_classes: int, dropout: float) -> None:
        super().__init__(features, num_classes)
        self.dropout = dropout

    def forward(self, input: Tensor) -> Tensor:
        """(B, features) to (B, K)."""
        return super().forward(F.dropout(input, self.dropout, self.training))


class Cnn(Classifier):
    """A named convolutional network (`net`) whose last linear layer is replaced by a `Head`.

    Convolutional weights fit any resolution; `image_size` only says what the model was trained for.

    Raises:
        RequestError: an unknown or unfit name, or EfficientNet-Lite0 without its package.
    """

    config: CnnConfig

    def __init__(self, config: CnnConfig, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.config, self.num_classes, self.image_size = config, num_classes, image_size
        self.net = _network(config.name)
        self._head_path, last = [
            (name, module) for name, module in self.net.named_modules() if isinstance(module, nn.Linear)
        ][-1]
        self.width = last.in_features
        self._place(self._head(num_classes))
        self._silence_own_dropout()
        self._layers = _layers(self.net)
        self.num_layers = max(self._layers.values())
        self.net.to(memory_format=torch.channels_last)  # 1.6 x faster to train on a CPU, and what tensor cores want

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, K); features (B, D) without a head."""
        logits_BK: Tensor = self.net(images_BCHW.contiguous(memory_format=torch.channels_last))
        return logits_BK

    def layer_of(self, name: str) -> int:
        """0 for the stem, then one number a block (or a stage, where the network names no blocks), the head last."""
        return self._layers[name.removeprefix("net.")]

    def undecayed(self) -> set[str]:
        """None: biases and norms have one dimension."""
        return set()

    def allow_any_size(self) -> None:
        """Convolutional weights fit any resolution."""

    def head_parameters(self) -> tuple[str, ...]:
        """Weight and bias of the head."""
        return (f"net.{self._head_path}.weight", f"net.{self._head_path}.bias") if self.num_classes else ()

    def reset_head(self, num_classes: int) -> None:
        """Replace the head in place by a zero-initialised one."""
        like = next(self.parameters())
        head = self._head(num_classes).to(like.device, like.dtype)
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        self._place(head.train(self.training))
        self.num_classes = num_classes

    def _head(self, num_classes: int) -> nn.Module:
        return Head(self.width, num_classes, self.config.dropout) if num_classes else nn.Identity()

    def _place(self, head: nn.Module) -> None:
        parent, _, leaf = self._head_path.rpartition(".")
        setattr(self.net.get_submodule(parent), leaf, head)

    def _silence_own_dropout(self) -> None:
        """The head drops out already: an own dropout right before it would do so twice."""
        parent, _, leaf = self._head_path.rpartition(".")
        classifier = self.net.get_submodule(parent)
        before = (
            classifier[int(leaf) - 1] if isinstance(classifier, nn.Sequential) and leaf not in ("0", "head") else None
        )
        if isinstance(before, nn.Dropout):
            before.p = 0.0


def check_name(name: str) -> None:
    """Whether torchvision has a CNN of that name that can be trained here.

    Raises:
        RequestError: it has not; the sentence names the nearest, or where to find them all.
    """
    from torchvision import models

    known = [known for known in models.list_models(module=models) if not known.startswith(_UNFIT)]
    if name not in known:
        near = difflib.get_close_matches(name, [LITE0, *known], n=1)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else f"take {LITE0} or a classifying CNN of torchvision ({known[0]}, …)"
        )
        raise RequestError(f"there is no CNN {name!r}: {hint}")


def timm_fits(described: nn.Module) -> bool:
    """Whether a classifier of timm's can be a `Cnn`: it takes images of any size and ends in one linear layer."""
    told: Mapping[str, Any] = getattr(described, "pretrained_cfg", None) or {}
    linear = [name for name, module in described.named_modules() if isinstance(module, nn.Linear)]
    return not told.get("fixed_input_size") and bool(linear) and told.get("classifier") == linear[-1]


def _network(name: str) -> nn.Module:
    if name == LITE0:
        return _lite0()
    return _timm(name.removeprefix(TIMM)) if name.startswith(TIMM) else _torchvision(name)


def _timm(name: str) -> nn.Module:
    import timm

    if not timm.is_model(name):  # which also keeps timm from reading the name as a folder or a repository
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise RequestError(f"timm has no model {name!r}" + (f": did you mean {near[0]!r}?" if near else ""))
    net: nn.Module = timm.create_model(name, pretrained=False)
    if not timm_fits(net):
        raise RequestError(
            f"timm's {name} is no CNN that can be trained here: it takes images of one size, or has no linear head"
        )
    return net


def _lite0() -> nn.Module:
    """EfficientNet-Lite0 (1905.11946, without squeeze-excitation and swish) of the package efficientnet-lite-pytorch.

    The package pads its convolutions for one image size unless it is told none; then each input is padded by its own.
    Its batch norms follow TensorFlow's slow averages (0.99), which a fine-tuning of a few hundred steps leaves far
    from its data: they get PyTorch's default.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise RequestError(f"{LITE0} needs its package: pip install 'vitcore[demo]'") from None
    net: nn.Module = EfficientNet.from_name(
        "efficientnet-lite0", image_size=None, batch_norm_momentum=0.9, dropout_rate=0.0
    )
    return net


def _torchvision(name: str) -> nn.Module:
    from torchvision import models

    check_name(name)
    net: nn.Module = models.get_model(name, weights=None)
    return net


def _layers(net: nn.Module) -> dict[str, int]:
    """Layer number of every parameter, in the order of registration.

    A layer is a child of the network, or of a container right below it, that holds at least one weight matrix or
    kernel; one that holds only norms and biases belongs to the layer before it.
    """
    containers = {name for name, child in net.named_children() if isinstance(child, nn.Sequential | nn.ModuleList)}
    groups: dict[str, list[str]] = {}
    for name, _ in net.named_parameters():
        first, second, *_ = name.split(".")
        groups.setdefault(f"{first}.{second}" if first in containers else first, []).append(name)
    layers: dict[str, int] = {}
    number = -1
    for names in groups.values():
        number += any(net.get_parameter(name).dim() > 1 for name in names)
        layers.update(dict.fromkeys(names, max(number, 0)))
    return layers
