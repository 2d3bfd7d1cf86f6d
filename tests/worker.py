"""What a process of `Processes` does with its JOB; run by path, so that it need not be importable."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vitcore import world
from vitcore.data.loading.batch import Batch
from vitcore.errors import Preempted, RequestError, WorkError
from vitcore.objectives.contrast import Pairs, contrast
from vitcore.train import loop
from vitcore.train.__main__ import main
from vitcore.train.checkpoint import CheckpointStore
from vitcore.train.learner import Learner
from vitcore.train.request import TrainRequest, open_dataset
from vitcore.train.validate import validate


class Recorder:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}
        self.events: list[tuple[int, str]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        assert step not in self.steps
        self.steps[step] = dict(metrics)

    def event(self, step: int, kind: str, detail: str) -> None:
        self.events.append((step, kind))

    def progress(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def do_train(here: world.World, request: TrainRequest) -> dict[str, Any]:
    """Train; what was reported, and which samples this rank saw at each step."""
    recorder, samples = Recorder(), {}
    optimise = loop.optimise

    def record(learner: Learner, batch: Batch, *wishes: Any) -> loop.Update:
        samples[batch.step] = batch.samples_S[batch.samples_S >= 0].tolist()
        return optimise(learner, batch, *wishes)

    loop.optimise = record
    try:
        result = loop.train(request, here, recorder)
    except (RequestError, WorkError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        loop.optimise = optimise
    return {
        "result": result.model_dump(mode="json"),
        "metrics": recorder.steps,
        "events": recorder.events,
        "samples": samples,
    }


def do_leave(here: world.World, request: TrainRequest) -> dict[str, Any]:
    """Train until the last rank is told to leave, at its fifth step."""
    asked = 0

    def leave() -> bool:
        nonlocal asked
        asked += 1
        return here.rank == here.size - 1 and asked == 5

    try:
        loop.train(request, here, Recorder(), leave)
    except Preempted as error:
        store = CheckpointStore(request.checkpoints, request.identity, 9)
        return {"left_at": error.step, "checkpoints": [found.progress.step for found in store.checkpoints()]}
    return {}


def do_hang(here: world.World, request: TrainRequest) -> dict[str, Any]:
    """Train until the last rank, before its third step, sleeps, or is stopped as a whole."""
    asked = 0

    def leave() -> bool:
        nonlocal asked
        asked += 1
        if here.rank == here.size - 1 and asked == 3:
            if request.identity == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(600)
        return False

    loop.train(request, here, Recorder(), leave)
    return {}


def do_validate(here: world.World, request: TrainRequest) -> dict[str, Any]:
    """Validate a model whose buffers differ from rank to rank."""
    learner = Learner(request, open_dataset(request.recipe, request.data), here)
    with torch.no_grad():  # a head of zeros would hide the difference
        for name in learner.objective.model.head_parameters():
            learner.objective.model.get_parameter(name).copy_(
                torch.linspace(-1, 1, 3).view(3, *[1] * ("bias" not in name))
            )
    for name, buffer in learner.objective.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(here.rank)
    return {"metrics": validate(learner)}


def do_contrast(here: world.World, _: Any) -> dict[str, Any]:
    """Loss and gradients of 11 pairs, 5 a rank at most; places that are left over have weight 0 and other rows."""
    torch.manual_seed(4)
    image_GE, text_GE = torch.nn.functional.normalize(torch.randn(2, 11, 6), dim=2)
    answer = {}
    for loss in ("softmax", "sigmoid"):
        own = slice(here.rank * 11 // here.size, (here.rank + 1) * 11 // here.size)
        slots, count = -(-11 // here.size), own.stop - own.start
        padding = torch.full((slots - count, 6), 0.4)
        rows = [torch.cat([rows_GE[own], padding]).requires_grad_() for rows_GE in (image_GE, text_GE)]
        weights_S = (torch.arange(slots) < count).float()
        shared = [torch.tensor(5.0, requires_grad=True), torch.tensor(-1.0, requires_grad=True)]
        loss_S, hit_S = contrast(loss, Pairs(*rows, weights_S), tuple(shared), here)
        total = (loss_S * weights_S).sum()
        total.backward()
        answer[loss] = {
            "loss": here.sum(total.detach().clone()).item(),
            "hits": here.sum((hit_S * weights_S).sum()).item(),
            "rows": [here.gather(row.grad[:count].tolist()) for row in rows],
            "padding": [row.grad[count:].abs().sum().item() for row in rows],
            "shared": [here.sum(value.grad.clone()).item() for value in shared if value.grad is not None],
        }
    return answer


def do_collectives(here: world.World, _: Any) -> dict[str, Any]:
    shared = torch.tensor([10 + here.rank, 2])
    here.share([shared])
    return {
        "place": [here.rank, here.size, here.is_main, here.distributed],
        "sum": here.sum(torch.tensor([1.0, float(here.rank)])).tolist(),
        "gather": here.gather({"rank": here.rank}),
        "broadcast": here.broadcast(f"from {here.rank}"),
        "share": shared.tolist(),
    }


def work(job: dict[str, Any]) -> None:
    os.environ.update(job["environ"])
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if "arguments" in job:
        sys.exit(main(job["arguments"]))
    torch.set_num_threads(1)
    here = world.current("cpu")
    answers = []
    for name, request in job["tasks"]:
        answers.append(globals()[f"do_{name}"](here, request and TrainRequest.model_validate(request)))
    if dist.is_initialized():
        dist.destroy_process_group()
    Path(job["answer"]).write_text(json.dumps(answers))


if __name__ == "<run_path>":
    work(json.loads(globals()["JOB"]))
