"""The optimiser over an objective's parameters: groups by weight decay and layer, schedules, and one exact update."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vitcore.objectives import Objective
from vitcore.recipe import OptimConfig
from vitcore.train.parallel import global_norm

SGD_MOMENTUM = 0.9
_STATE = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")  # what the optimisers keep of a parameter


def parameter_groups(objective: Objective, config: OptimConfig) -> list[dict[str, object]]:
    """Groups of equal weight decay and learning-rate scale.

    Biases, norms and whatever the objective names in `undecayed()` are not decayed. A layer's rate is
    ``layer_decay ** (num_layers − layer)``: 1 at the head, smallest at the stem (2106.08254, appendix); what is
    trained beside the model has that of the head.
    """
    undecayed: set[str] = objective.undecayed()
    groups: dict[tuple[bool, int], dict[str, object]] = {}
    for name, parameter in objective.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim > 1 and name not in undecayed
        depth = 0 if config.layer_decay == 1 else _depth(objective, name)
        group = groups.setdefault(
            (decayed, depth),
            {
                "params": [],
                "names": [],
                "weight_decay": config.weight_decay if decayed else 0.0,
                "decayed": decayed,
                "lr_scale": config.layer_decay**depth,
            },
        )
        group["params"].append(parameter)  # type: ignore[attr-defined]
        group["names"].append(name)  # type: ignore[attr-defined]
    return list(groups.values())


def _depth(objective: Objective, name: str) -> int:
    """Layers between a parameter and the head."""
    model = objective.model
    return model.num_layers - model.layer_of(name.removeprefix("model.")) if name.startswith("model.") else 0


def build_optimizer(objective: Objective, config: OptimConfig) -> torch.optim.Optimizer:
    """The recipe's optimiser; fused where there is a kernel: one launch a group on CPU as on CUDA."""
    groups = parameter_groups(objective, config)
    if config.name == "lamb":
        from timm.optim.lamb import Lamb  # half a second that the others need not wait

        lamb: torch.optim.Optimizer = Lamb(groups, lr=config.lr, betas=config.betas, eps=config.eps, max_grad_norm=None)
        return lamb
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=SGD_MOMENTUM, fused=True)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(config: OptimConfig, step: int, *, warmup: int, total: int) -> float:
    """Rate of step number `step` (from 0): linear from 0 to `lr` over `warmup` steps, then a cosine to `min_lr`."""
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def weight_decay(config: OptimConfig, step: int, *, total: int) -> float:
    """Weight decay of step number `step` (from 0): a cosine from `weight_decay` to `final_weight_decay`."""
    if config.final_weight_decay is None:
        return config.weight_decay
    gone = 0.5 * (1 - math.cos(math.pi * step / total))
    return config.weight_decay + (config.final_weight_decay - config.weight_decay) * gone


def set_schedule(optimizer: torch.optim.Optimizer, rate: float, decay: float) -> None:
    """Give every group its share of the learning rate, and the weight decay to those that decay."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
        group["weight_decay"] = decay if group["decayed"] else 0.0


def scale_and_clip(parameters: Iterable[nn.Parameter], scale: float, clip_norm: float | None) -> float:
    """Multiply all gradients by `scale`, then bring their global norm down to `clip_norm`; one pass over them.

    Returns:
        The global norm after scaling, before clipping.
    """
    gradients: list[Tensor] = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = scale * global_norm(gradients).item()
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
                if value is not None:  # SGD before its first step
                    tensors[f"{key}/{name}"] = value
        if "step" in group:  # LAMB counts a group's steps, not a parameter's
            tensors[f"group_step/{group['names'][0]}"] = group["step"]
    return tensors


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave. A parameter without state (it never had a gradient) gets none."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            found = {key: tensors[f"{key}/{name}"] for key in _STATE if f"{key}/{name}" in tensors}
            if found:  # a fused optimiser counts its steps on the device, too
                optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in found.items()}
        counted = tensors.get(f"group_step/{group['names'][0]}")
        if counted is not None:
            group["step"] = counted
