"""Precision, matmul mode and compilation, chosen from what the hardware computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True, slots=True)
class Precision:
    """How forward and backward passes compute: `dtype` under autocast, or fp32 throughout."""

    device_type: str
    dtype: torch.dtype | None

    def autocast(self) -> AbstractContextManager[None]:
        """Context of a forward pass."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)

    @property
    def name(self) -> str:
        """``fp32`` or ``bf16``."""
        return "fp32" if self.dtype is None else "bf16"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a device can do, apart from the device, so that the choice below is tested anywhere."""

    device_type: str
    bf16: bool

    @staticmethod
    def of(device: torch.device) -> Capabilities:
        """Ask the hardware. A CPU computes in bf16 only with AMX or AVX512-BF16: without, bf16 is 4× slower."""
        if device.type == "cuda":
            return Capabilities("cuda", torch.cuda.get_device_capability(device) >= (8, 0))
        return Capabilities("cpu", torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def choose(policy: Literal["auto", "fp32", "bf16"], capabilities: Capabilities) -> Precision:
    """The precision of a run: `auto` is bf16 where the hardware computes in it, else fp32."""
    bf16 = policy == "bf16" or (policy == "auto" and capabilities.bf16)
    return Precision(capabilities.device_type, torch.bfloat16 if bf16 else None)


def should_compile(policy: Literal["auto", "on", "off"], capabilities: Capabilities) -> bool:
    """Whether to torch.compile: `auto` only on CUDA; on CPUs it was measured at 0.93–1.09 × and costs 20–40 s."""
    return policy == "on" or (policy == "auto" and capabilities.device_type == "cuda")


def tune(device: torch.device, threads: int | None) -> None:
    """Process-wide switches: TF32 and cuDNN search on CUDA, thread count on CPU."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    elif threads is not None:
        torch.set_num_threads(threads)
