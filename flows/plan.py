"""A training is planned: what it needs, how long it takes and what limits it, on one or several sizes of a cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tasks.settings import Settings, load
from vitcore.data.dataset.manifest import Dataset
from vitcore.errors import RequestError
from vitcore.estimate import hardware as known
from vitcore.estimate.hardware import Hardware
from vitcore.estimate.loading import measure_loading
from vitcore.estimate.plan import MFU, MFU_CPU, Planned, Planner
from vitcore.estimate.probe import probe as take_steps
from vitcore.estimate.subject import Subject, subject
from vitcore.estimate.timing import Cluster
from vitcore.models.references import absolute
from vitcore.recipe import Compute, DistillConfig, apply_overrides
from vitcore.recipe.compute import threads_of, workers_on_cpus
from vitcore.recipes import find
from vitcore.train.precision import choose
from vitcore.train.request import TrainRequest

GPUS_PER_NODE = 8


def plan(
    recipe: str,
    data: Sequence[str],
    *,
    overrides: Mapping[str, Any],
    compute: Compute,
    model: str | None = None,
    teacher: str | None = None,
    gpu: str = "auto",
    nodes: Sequence[int] = (1,),
    per_node: int | None = None,
    mfu: float | None = None,
    network: float,
    probe: Literal["auto", "on", "off"] = "auto",
) -> Planned:
    """Plan a training.

    Args:
        recipe: name of a recipe.
        data: URLs of datasets; those behind the first are mixed in.
        overrides: dotted field of the recipe → value.
        compute: how it is run.
        model: reference to start from; needed where the recipe does not say how large the model is.
        teacher: reference to distil from; without, its outputs are taken to be stored.
        gpu: name in the table; ``cpu`` for this machine; ``auto`` for what it has.
        nodes: sizes of a cluster.
        per_node: workers of a node; default: 8 on GPUs, on a CPU as many as a training takes.
        mfu: share of the hardware's peak that is reached; default: an assumption, or what the probe measures.
        network: bytes/s between nodes.
        probe: whether steps are taken where the hardware is here; ``auto``: if so, unless `mfu` is given.
    Raises:
        RequestError: something named does not exist or does not fit.
    """
    settings, chosen = load(), apply_overrides(find(recipe), dict(overrides))
    hardware, workers = _hardware(gpu, _workers(per_node, compute), compute)
    if chosen.needs_parent and model is None and chosen.model.kind == "parent":
        raise RequestError(f"recipe {recipe!r} is as large as the model it continues: name that with --model")
    if teacher is not None and not isinstance(chosen.objective, DistillConfig):
        raise RequestError(f"recipe {recipe!r} follows no teacher: leave --teacher out")
    first, *others = (Dataset.open(url).ref for url in data)
    request = TrainRequest(
        recipe=chosen,
        compute=compute,
        data=first,
        mixture=tuple(others),
        init=None if model is None else _readable(model, settings),
        teacher=None if teacher is None else _readable(teacher, settings),
        checkpoints=str(settings.home),
    )
    asked = subject(request)
    why_not = _no_probe(asked, hardware, probe, mfu)
    precision = choose(compute.precision, hardware.capabilities)
    assumed = mfu or (MFU if hardware.cuda else MFU_CPU)
    planner = Planner(asked, hardware, measure_loading(asked), precision, mfu=assumed)
    if why_not is None:
        threads = threads_of(workers, _cores())
        planner.calibrate(take_steps(asked, planner.size.predict_flops * 3, planner.rate, threads))
    rows = [planner.row(Cluster(count, workers, hardware, network)) for count in nodes]
    return planner.planned(rows, network=network, why_no_probe=why_not)


def _workers(per_node: int | None, compute: Compute) -> int | None:
    """Workers of a node, if the request says so."""
    if per_node is not None and compute.workers not in (None, per_node):
        raise RequestError("--gpus-per-node and --compute.workers both say what a node has: give one of them")
    if per_node is not None and per_node < 1:
        raise RequestError("--gpus-per-node takes a number from 1")
    return per_node or compute.workers


def _hardware(gpu: str, workers: int | None, compute: Compute) -> tuple[Hardware, int]:
    """What each worker runs on, and how many there are on a node."""
    found = None
    if gpu == "auto":
        found = None if compute.accelerator == "cpu" else known.gpu_here()
    elif gpu != "cpu":
        found = known.find(gpu)
    if found is not None:
        return found, workers or GPUS_PER_NODE
    workers = workers or workers_on_cpus(_cores())
    return known.cpu_here(workers, threads_of(workers, _cores())), workers


def _no_probe(asked: Subject, hardware: Hardware, probe: Literal["auto", "on", "off"], mfu: float | None) -> str | None:
    """Why no steps are taken; None: they are.

    Raises:
        RequestError: they were asked for, and cannot be.
    """
    recipe, request = asked.recipe, asked.request
    if probe == "off":
        return "not asked for"
    if mfu is not None:
        reason = "--mfu says at which share of its peak the hardware computes"
    elif not known.is_here(hardware):
        reason = f"there is no {hardware.name} here"
    elif recipe.needs_parent and request.init is None:
        reason = "it needs the model that is continued: name it with --model"
    elif isinstance(recipe.objective, DistillConfig) and request.teacher is None:
        reason = "it needs the teacher: name it with --teacher"
    else:
        return None
    if probe == "on":
        raise RequestError(f"no steps can be taken for --probe on: {reason}")
    return reason


def _readable(ref: str, settings: Settings) -> str:
    """What `load_reference` can read of a reference: registered versions are fetched."""
    if not ref.startswith("models:"):
        return absolute(ref)
    from tasks.models import localize, resolve  # MLflow, whose seconds the others need not wait for

    return localize(settings.tracking_uri, settings.home / "models", resolve(ref, settings).ref)


def _cores() -> int:
    return os.cpu_count() or 1
