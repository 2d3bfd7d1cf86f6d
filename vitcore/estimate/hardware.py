"""What GPUs can do, by their makers' data sheets, and what the machine here can, measured.

Peaks are of dense products (data sheets often print twice as much, "with sparsity"). Links are one direction of what a
GPU reaches its neighbours in a node by: half of what data sheets print.
"""

from __future__ import annotations

import difflib
import re
import time
from dataclasses import dataclass

import psutil
import torch

from vitcore.errors import RequestError
from vitcore.train.precision import Capabilities, Precision

USABLE = 0.92
"""Share of a GPU's memory that is planned with. Assumed: the rest is the CUDA context, NCCL and fragmentation."""
_PEAK_SIDE, _PEAK_S = 1536, 0.4  # of the matrices, and seconds that products of them are timed for
_TERA, _GIGA = 1e12, 1e9


@dataclass(frozen=True, slots=True)
class Hardware:
    """One device of one worker."""

    name: str
    fp32: float
    """FLOP/s of matrix products in fp32; in TF32 where there is that, as vitcore sets it."""
    bf16: float | None
    """FLOP/s of matrix products in bf16; None where it is not computed in."""
    memory: int
    """Bytes."""
    bandwidth: float
    """Of its memory, in bytes/s."""
    link: float
    """To the other devices of a node, in bytes/s."""
    source: str
    """Where the numbers stand, or how they were measured."""
    device: str = ""
    """Pattern of the name that the driver gives it."""

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.name != "cpu"

    @property
    def capabilities(self) -> Capabilities:
        """What precision is chosen by."""
        return Capabilities("cuda" if self.cuda else "cpu", self.bf16 is not None)

    @property
    def usable(self) -> int:
        """Bytes that a training may fill."""
        return int(self.memory * USABLE)

    def peak(self, precision: Precision) -> float:
        """FLOP/s of matrix products in a precision."""
        return self.fp32 if precision.dtype is None or self.bf16 is None else self.bf16


def _gpu(
    name: str, device: str, tera: tuple[float, float | None], gib: int, giga: tuple[float, float], source: str
) -> Hardware:
    """With TFLOP/s in fp32 and bf16, GiB, and GB/s of memory and link."""
    fp32, bf16 = tera
    bandwidth, link = giga
    scaled = None if bf16 is None else bf16 * _TERA
    return Hardware(name, fp32 * _TERA, scaled, gib * 2**30, bandwidth * _GIGA, link * _GIGA, source, device)


_TABLE = (
    _gpu("v100", r"V100", (15.7, None), 32, (900, 150), "NVIDIA V100 data sheet, SXM2 32 GB"),
    _gpu("a100-40", r"A100.*40GB", (156, 312), 40, (1555, 300), "NVIDIA A100 data sheet, SXM 40 GB"),
    _gpu("a100-80", r"A100.*80GB", (156, 312), 80, (2039, 300), "NVIDIA A100 data sheet, SXM 80 GB"),
    _gpu("a10", r"A10\b|A10G", (62.5, 125), 24, (600, 32), "NVIDIA A10 data sheet; PCIe 4.0 x16"),
    _gpu("l4", r"L4\b", (60, 121), 24, (300, 32), "NVIDIA L4 data sheet, its sparse figures halved; PCIe 4.0 x16"),
    _gpu("l40s", r"L40S", (183, 362), 48, (864, 32), "NVIDIA L40S data sheet; PCIe 4.0 x16"),
    _gpu("rtx4090", r"RTX 4090", (82.6, 165.2), 24, (1008, 32), "NVIDIA Ada white paper, appendix A; PCIe 4.0 x16"),
    _gpu("h100", r"H100", (494.7, 989.4), 80, (3350, 450), "NVIDIA H100 data sheet, SXM, its sparse figures halved"),
    _gpu("h200", r"H200", (494.7, 989.4), 141, (4800, 450), "NVIDIA H200 data sheet, SXM, its sparse figures halved"),
    _gpu("b200", r"B200", (1125, 2250), 180, (7700, 900), "NVIDIA HGX B200 data sheet, its sparse figures halved"),
)
GPUS: dict[str, Hardware] = {gpu.name: gpu for gpu in _TABLE}
"""By the name that `--gpu` takes."""
LOOPBACK = 2e9
"""Bytes/s between the workers of one machine without GPUs. Assumed."""


def find(name: str) -> Hardware:
    """The GPU of a name.

    Raises:
        RequestError: it is not in the table; the sentence names the nearest, or all.
    """
    if name in GPUS:
        return GPUS[name]
    near = difflib.get_close_matches(name.lower(), GPUS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(GPUS)}, and cpu for this machine"
    raise RequestError(f"there is no GPU {name!r} in the table; {hint}")


def gpu_here() -> Hardware | None:
    """The GPU of this machine; None without one.

    Raises:
        RequestError: it is not in the table.
    """
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    found = [gpu for gpu in _TABLE if re.search(gpu.device, name)]
    if not found:
        raise RequestError(f"this machine's {name} is not in the table; name the nearest with --gpu: {', '.join(GPUS)}")
    return found[0]


def is_here(hardware: Hardware) -> bool:
    """Whether this machine has it."""
    if not hardware.cuda:
        return True
    return torch.cuda.is_available() and re.search(hardware.device, torch.cuda.get_device_name()) is not None


def cpu_here(workers: int, threads: int) -> Hardware:
    """What one of `workers` of this machine can do with its `threads`; the products are timed, in half a second."""
    bf16 = Capabilities.of(torch.device("cpu")).bf16
    return Hardware(
        name="cpu",
        fp32=product_peak(torch.float32, threads),
        bf16=product_peak(torch.bfloat16, threads) if bf16 else None,
        memory=psutil.virtual_memory().total // workers,
        bandwidth=0.0,
        link=LOOPBACK,
        source=f"measured here: products of {_PEAK_SIDE} x {_PEAK_SIDE} matrices on {threads} threads",
    )


def product_peak(dtype: torch.dtype, threads: int) -> float:
    """FLOP/s of products of large matrices on the CPU: the best of some."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left, right = (torch.ones(_PEAK_SIDE, _PEAK_SIDE, dtype=dtype) for _ in range(2))
        out = left @ right
        best, until = 0.0, time.perf_counter() + _PEAK_S
        while time.perf_counter() < until:
            began = time.perf_counter()
            torch.matmul(left, right, out=out)
            best = max(best, 2 * _PEAK_SIDE**3 / (time.perf_counter() - began))
        return best
    finally:
        torch.set_num_threads(before)
