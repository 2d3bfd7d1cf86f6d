"""Run a `TrainRequest` on Ray Train workers, restarted from the newest checkpoint when one of them dies."""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.context import get_train_context

from tasks.on_ray.cluster import cores, gpus
from tasks.on_ray.mailbox import Message, listening
from tasks.settings import Settings
from vitcore import world
from vitcore.errors import Preempted, RequestError, WorkError
from vitcore.recipe import Compute
from vitcore.recipe.compute import threads_of, workers_on_cpus
from vitcore.sink import NullSink, Sink
from vitcore.train.loop import train
from vitcore.train.overfit import overfit_one_batch
from vitcore.train.request import TrainRequest, TrainResult

_TELL_EVERY_S = 0.25

Localize = Callable[[str], str]
"""Turns a model reference into a folder of the machine it is called on."""


def fit(
    request: TrainRequest,
    settings: Settings,
    *,
    make_sink: Callable[[], Sink],
    localize: Localize,
    listener: Callable[[Message], None],
) -> TrainResult:
    """Train on `request.compute.workers` workers of the connected cluster.

    Args:
        request: what to train; its model references are resolved on the workers by `localize`.
        settings: where Ray Train keeps its own files.
        make_sink: makes rank 0's sink, in its process.
        localize: see `Localize`.
        listener: told ``{"step", "total", "metrics"}`` and ``{"event", "step", "detail"}`` while training goes on.
    Raises:
        RequestError: the request does not fit the data or the cluster.
        WorkError: the training failed more often than allowed.
    """
    answer = _run(_train_worker, request, settings, listener, make_sink=make_sink, localize=localize)
    return TrainResult.model_validate(answer)


def overfit(
    request: TrainRequest, settings: Settings, *, localize: Localize, listener: Callable[[Message], None]
) -> dict[str, float]:
    """Memorise one batch on the workers; see `vitcore.train.overfit`."""
    return _run(_overfit_worker, request, settings, listener, make_sink=NullSink, localize=localize)


def _run(
    worker: Callable[[dict[str, Any]], dict[str, Any]],
    request: TrainRequest,
    settings: Settings,
    listener: Callable[[Message], None],
    **context: Any,
) -> dict[str, Any]:
    scaling, threads = _scaling(request.compute)
    request = request.model_copy(update={"compute": request.compute.model_copy(update={"threads": threads})})
    with listening(listener) as mailbox:

        def make_trainer() -> Any:
            return TorchTrainer(
                worker,  # type: ignore[arg-type]  # Ray's own type forbids the return value it passes on
                train_loop_config={"request": request.model_dump_json(), "mailbox": mailbox, **context},
                scaling_config=scaling,
                run_config=RunConfig(
                    name=f"{request.identity or 'run'}-{uuid.uuid4().hex[:8]}",
                    storage_path=str(settings.home / "ray-train"),
                    failure_config=FailureConfig(max_failures=request.compute.max_failures),
                ),
            )

        handler = signal.getsignal(signal.SIGINT)
        try:
            answer = _until_answered(make_trainer)
        except SystemExit:  # Ray's answer to Ctrl-C
            raise KeyboardInterrupt from None
        except ray.train.TrainingFailedError as error:
            raise WorkError(f"training failed: {_cause(error)}") from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, handler)  # Ray leaves its own behind
    if answer is None:
        raise WorkError("the training workers ended without an answer; look at Ray's logs under the session folder")
    if "error" in answer:
        raise (RequestError if answer["kind"] == "request" else WorkError)(answer["error"])
    return dict(answer["result"])


def _until_answered(make_trainer: Callable[[], Any]) -> dict[str, Any] | None:
    """Train, and again on other nodes as often as the workers left theirs because they were to be taken away."""
    while True:
        answer: dict[str, Any] | None = make_trainer().fit().return_value
        if answer is None or "preempted" not in answer:
            return answer


def _scaling(compute: Compute) -> tuple[ScalingConfig, int]:
    """Ray's scaling of a compute request on the connected cluster, and the threads a worker computes with."""
    available, cards = cores(), gpus()
    use_gpu = compute.accelerator == "cuda" or (compute.accelerator == "auto" and cards > 0)
    workers = compute.workers or (cards if use_gpu else workers_on_cpus(available)) or 1
    if use_gpu and cards < workers:
        raise RequestError(
            f"{workers} workers need a GPU each, the cluster has {cards}; "
            "lower --compute.workers or set --compute.accelerator cpu"
        )
    threads = compute.threads or threads_of(workers, available)
    if threads * workers > available:
        raise RequestError(
            f"{workers} workers of {threads} cores each need more than the {available} cores there are; "
            "lower --compute.workers or --compute.threads"
        )
    return (
        ScalingConfig(num_workers=workers, use_gpu=use_gpu, resources_per_worker={"CPU": threads}),
        threads,
    )


def _train_worker(context: dict[str, Any]) -> dict[str, Any]:
    """What every worker process runs for `fit`."""

    def work(request: TrainRequest, here: world.World, told: Callable[[Message], None]) -> dict[str, Any]:
        sink: Sink = _Telling(context["make_sink"](), told) if here.is_main else NullSink()
        try:
            return train(request, here, sink, leave=_node_is_drained).model_dump(mode="json")
        finally:
            sink.close()

    return _answer(context, work)


def _overfit_worker(context: dict[str, Any]) -> dict[str, Any]:
    """What every worker process runs for `overfit`."""

    def work(request: TrainRequest, here: world.World, told: Callable[[Message], None]) -> dict[str, Any]:
        return overfit_one_batch(request, here, _Telling(NullSink(), told))

    return _answer(context, work)


def _answer(
    context: dict[str, Any],
    work: Callable[[TrainRequest, world.World, Callable[[Message], None]], dict[str, Any]],
) -> dict[str, Any]:
    """Do the work; an error of the request or the data is an answer, since trying again would not help."""
    request = TrainRequest.model_validate_json(context["request"])
    mailbox, localize = context["mailbox"], context["localize"]
    here = world.current(request.compute.accelerator)
    try:
        names = ("init",) if request.teacher_outputs else ("init", "teacher")  # one whose outputs are stored stays away
        places = {name: localize(ref) for name in names if (ref := getattr(request, name)) is not None}
        result = work(request.model_copy(update=places), here, lambda message: mailbox.post.remote(message))
    except Preempted as error:
        return {"preempted": error.step}
    except RequestError as error:
        return {"kind": "request", "error": str(error)}
    except WorkError as error:
        return {"kind": "work", "error": str(error)}
    return {"result": result}


def _node_is_drained() -> bool:
    """Whether Ray has noticed that a node of this group is to be taken away.

    `ray.train.get_preemption_info` says the same, but is a barrier over all workers; the loop has one of its own.
    """
    return get_train_context().preemption_context.preemption_info is not None


class _Telling:
    """A sink that also tells the waiting process how far the training is, a few times a second."""

    def __init__(self, inner: Sink, tell: Callable[[Message], None]) -> None:
        self._inner, self._tell = inner, tell
        self._told = 0.0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._inner.log(step, metrics)

    def event(self, step: int, kind: str, detail: str) -> None:
        self._inner.event(step, kind, detail)
        self._tell({"event": kind, "step": step, "detail": detail})

    def progress(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        self._inner.progress(step, total, metrics)
        if time.monotonic() - self._told >= _TELL_EVERY_S or step == total:
            self._told = time.monotonic()
            self._tell({"step": step, "total": total, "metrics": dict(metrics)})

    def close(self) -> None:
        self._inner.close()


def _cause(error: BaseException) -> str:
    """The last line of what went wrong on a worker, without Ray's layers around it."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    for rank, failure in sorted(failures.items()):
        return f"worker {rank}: {str(failure).strip().splitlines()[-1]}"
    return str(error).strip().splitlines()[-1]
