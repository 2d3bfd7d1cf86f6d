"""Store a teacher's outputs on the cluster: every file is a Ray task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tasks.models import localize
from tasks.on_ray.cluster import gpus
from tasks.on_ray.map import map_unordered
from tasks.settings import Settings
from vitcore.train.store_teacher import Piece, TeachRequest, store_outputs


@dataclass(frozen=True)
class _Task:
    function: Callable[[Piece], None]
    piece: Piece
    settings: Settings


def teach(request: TeachRequest, settings: Settings, *, progress: Callable[[int, int], None]) -> str:
    """Store what is missing of a teacher's outputs; returns the URL of their folder.

    Args:
        request: its teacher is a pinned reference; it is fetched once a machine.
        settings: where models come from and are kept.
        progress: told how many of the missing steps are done.
    Raises:
        RequestError, WorkError: see `vitcore.train.store_teacher.store_outputs`.
    """
    cards = 1 if gpus() and request.compute.accelerator != "cpu" else 0

    def mapper(function: Callable[[Any], Any], inputs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        return map_unordered(_do, [_Task(function, piece, settings) for piece in inputs], gpus=cards)

    return store_outputs(request, mapper=mapper, progress=progress)


def _do(task: _Task) -> None:
    """Runs on a Ray worker that was given one core, and a GPU where there are any."""
    request, settings = task.piece.request, task.settings
    teacher = localize(settings.tracking_uri, settings.home / "models", request.teacher)
    compute = request.compute.model_copy(update={"threads": 1})
    task.function(replace(task.piece, request=request.model_copy(update={"teacher": teacher, "compute": compute})))
