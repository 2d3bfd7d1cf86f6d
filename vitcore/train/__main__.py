"""Train without any orchestrator: ``python -m vitcore.train request.json``, or the same under ``torchrun``.

The request is a `TrainRequest` as JSON; metrics go to `metrics.jsonl` beside the checkpoints' folder when that is
local, and the result is printed as one line of JSON. Told to leave (SIGTERM), it makes a checkpoint first.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from vitcore import storage, world
from vitcore.errors import Preempted, RequestError, WorkError
from vitcore.recipe import parse
from vitcore.sink import JsonlSink, NullSink, Sink
from vitcore.train.loop import train
from vitcore.train.request import TrainRequest


def main(arguments: list[str]) -> int:
    """Run the request in the file `arguments` names; returns the exit code."""
    if len(arguments) != 1:
        print("usage: python -m vitcore.train REQUEST.json", file=sys.stderr)
        return 2
    try:
        request = parse(TrainRequest, json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        print(f"vitcore.train: {arguments[0]}: {error}", file=sys.stderr)
        return 2
    try:
        here = world.current(request.compute.accelerator)
        sink: Sink = NullSink()
        if here.is_main and storage.is_local(request.checkpoints):
            sink = JsonlSink(storage.local_path(request.checkpoints) / "metrics.jsonl")
        result = train(request, here, sink, leave=on_sigterm())
        sink.close()
    except RequestError as error:
        print(f"vitcore.train: {error}", file=sys.stderr)
        return 2
    except Preempted as error:
        print(f"vitcore.train: {error}", file=sys.stderr)
        return 128 + signal.SIGTERM
    except (OSError, WorkError) as error:
        print(f"vitcore.train: {error}", file=sys.stderr)
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if here.is_main:
        print(result.model_dump_json())
    return 0


def on_sigterm() -> Callable[[], bool]:
    """From now on SIGTERM does not end this process; the answer says whether it came."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    return told.is_set


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
