"""HOW a recipe is run. Nothing here changes what is learned."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from vitcore.duration import Minutes, WallInterval
from vitcore.recipe.config import Config


def workers_on_cpus(cores: int) -> int:
    """Workers of a training on so many cores without GPUs, where it does not say."""
    return min(2, cores)


def threads_of(workers: int, cores: int) -> int:
    """Cores that each worker computes with, where it does not say."""
    return max(1, cores // workers)


class Compute(Config):
    """HOW a recipe is run. Nothing here changes what is learned, so nothing here is part of an identity."""

    workers: int | None = None
    """Ray Train workers, one process each; default: one a GPU, without GPUs two (one where there is a single core)."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of a worker; `auto` takes a GPU where the cluster has one."""
    threads: int | None = None
    """CPU cores a worker computes with; default: the machine's cores divided by its workers."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` takes bf16 where the hardware computes in it, else fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; `auto` compiles on CUDA only (it never paid on a CPU)."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Every worker holds the whole model (`ddp`), or a part of every layer (`fsdp`): for models that do not fit."""
    recompute: bool = False
    """Keep of each block its input alone and compute it again in the backward pass: a third more work, less memory.
    Blocks with a batch norm are left as they are."""
    microbatch: int | None = None
    """Most samples in one forward pass of a worker; the rest of its share is accumulated. Default: all of it."""
    checkpoint_every: WallInterval = "5 min"
    """How often to checkpoint; every validation is a checkpoint too."""
    checkpoint_async: Literal["auto", "on", "off"] = "auto"
    """Whether checkpoints are written while training goes on; `auto` does so with states of 32 MB and more."""
    keep: int = 2
    """Newest checkpoints kept beside the best one."""
    loader_workers: int = 2
    """Threads a worker decodes with."""
    cache_gb: float = 4.0
    """Most disk, in GiB, that a worker keeps fetched parts of remote shards in; local shards need none."""
    cache_dir: str | None = None
    """Folder of that cache, on a local disk; default: the system's folder for temporary files."""
    hang_after: Minutes = "10 min"
    """How long nothing may move before a worker says which rank stands where and ends; 0 min: for ever."""
    max_failures: int = 3
    """How often a failed worker group is restarted from the newest checkpoint."""

    @field_validator("workers", "keep")
    @classmethod
    def _positive(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError("must be at least 1")
        return value

    @field_validator("cache_gb")
    @classmethod
    def _size(cls, value: float) -> float:
        if value < 0:
            raise ValueError("must be 0 or more")
        return value
