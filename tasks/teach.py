"""Teach: a teacher's outputs for the stream of a training, stored once beside the dataset."""

from __future__ import annotations

from prefect import task

from tasks.on_ray.cluster import connected
from tasks.on_ray.teach import teach
from tasks.settings import Settings
from tasks.stages import StagePlan
from tasks.story import tell, track
from vitcore.train.store_teacher import TeachRequest, store_outputs, wanted


def plan_teaching(request: TeachRequest) -> StagePlan:
    """What `store_teacher` would do."""
    work = wanted(request)
    verb, identity = f"store {request.teacher}", f"teacher-{work.outputs.identity}"
    if not work.missing:
        return StagePlan(verb, identity, "done", f"its outputs for {work.steps:,} steps lie at {work.place}")
    missing = f"{len(work.missing)} of {work.chunks} files of its outputs are missing at {work.place}"
    return StagePlan(verb, identity, "run", missing)


@task(name="store teacher", task_run_name="store {request.teacher}")
def store_teacher(request: TeachRequest, settings: Settings) -> str:
    """URL of a teacher's outputs for every step of a training; those that are there are not computed again.

    Raises:
        RequestError: teacher, recipe and data do not fit together.
        WorkError: the teacher's outputs are not finite, or the data cannot be read.
    """
    work = wanted(request)
    if not work.missing:
        place = store_outputs(request)  # a kill may have come between the last file and the word that all are there
        tell(settings, f"store {request.teacher}: done before, {place}")
        return place
    with connected(settings), track(settings, f"store {request.teacher}", None, "steps") as shown:
        place = teach(request, settings, progress=shown.update)
    tell(settings, f"store {request.teacher}: {work.outputs.top} logits of every view of {work.steps:,} steps, {place}")
    return place
