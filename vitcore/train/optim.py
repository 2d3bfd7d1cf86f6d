"""AdamW over named parameters: groups by weight decay and layer, the cosine schedule, and one exact update."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vitcore.models.classifier import Classifier
from vitcore.recipe import OptimConfig

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def parameter_groups(model: Classifier, config: OptimConfig) -> list[dict[str, object]]:
    """Groups of equal weight decay and learning-rate scale.

    Biases, norms and whatever the model names in `undecayed()` are not decayed. A layer's rate is
    ``layer_decay ** (num_layers − layer)``: 1 at the head, smallest at the stem (2106.08254, appendix).
    """
    undecayed: set[str] = model.undecayed()
    groups: dict[tuple[bool, int], dict[str, object]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim > 1 and name not in undecayed
        depth = 0 if config.layer_decay == 1 else model.num_layers - model.layer_of(name)
        group = groups.setdefault(
            (decayed, depth),
            {
                "params": [],
                "names": [],
                "weight_decay": config.weight_decay if decayed else 0.0,
                "lr_scale": config.layer_decay**depth,
            },
        )
        group["params"].append(parameter)  # type: ignore[attr-defined]
        group["names"].append(name)  # type: ignore[attr-defined]
    return list(groups.values())


def build_optimizer(model: Classifier, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW, fused: one kernel a group on CPU as on CUDA."""
    return torch.optim.AdamW(
        parameter_groups(model, config), lr=config.lr, betas=config.betas, eps=config.eps, fused=True
    )


def learning_rate(config: OptimConfig, step: int, *, warmup: int, total: int) -> float:
    """Rate of step number `step` (from 0): linear from 0 to `lr` over `warmup` steps, then a cosine to `min_lr`."""
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def scale_and_clip(parameters: Iterable[nn.Parameter], scale: float, clip_norm: float | None) -> float:
    """Multiply all gradients by `scale`, then bring their global norm down to `clip_norm`; one pass over them.

    Returns:
        The global norm after scaling, before clipping.
    """
    gradients: list[Tensor] = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = scale * torch.nn.utils.get_total_norm(gradients).item()
    shrink = 1.0 if clip_norm is None or norm <= clip_norm else clip_norm / (norm + 1e-6)
    if math.isfinite(norm) and scale * shrink != 1.0:
        torch._foreach_mul_(gradients, scale * shrink)
    return norm


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by parameter name: ``exp_avg/blocks.0.attn.qkv.weight`` → tensor."""
    tensors: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state[parameter].items():
                tensors[f"{key}/{name}"] = value
    return tensors


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave. A parameter without state (it never had a gradient) gets none."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            found = {key: tensors[f"{key}/{name}"] for key in _MOMENTS if f"{key}/{name}" in tensors}
            if found:  # a fused optimiser counts its steps on the device, too
                optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in found.items()}
