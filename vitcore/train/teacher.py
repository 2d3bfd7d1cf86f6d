"""The teacher of a training: a model that answers at every step, or the outputs that it left beside the dataset."""

from __future__ import annotations

from collections.abc import Sequence

from vitcore.data.dataset.manifest import DatasetRef
from vitcore.data.teaching.outputs import Stream, read
from vitcore.data.teaching.stored import StoredOutputs
from vitcore.errors import RequestError
from vitcore.models import Classifier
from vitcore.models.references import load_reference
from vitcore.recipe import DistillConfig, Recipe, flatten
from vitcore.train.request import TrainRequest

_SHOWN = 3  # fields that an error names
_FIELDS = {"seed": "train.seed", "batch_size": "train.batch_size", "datasets": "dataset versions"}


def load_teacher(ref: str, classes: tuple[str, ...]) -> Classifier:
    """The model a reference names, if it knows exactly these classes in this order.

    Raises:
        RequestError: it does not, or cannot be loaded.
    """
    teacher = load_reference(ref)
    if teacher.card.classes != classes:
        raise RequestError(
            f"the teacher {ref} was trained on other classes than this dataset's "
            f"({len(teacher.card.classes)} against {len(classes)}); fine-tune it on this dataset first"
        )
    return teacher.classifier


def stream_of(recipe: Recipe, datasets: Sequence[DatasetRef]) -> Stream:
    """What a training shows, as far as it decides what a teacher would say: nothing of the student is in it."""
    return Stream(
        data=recipe.data,
        datasets=tuple(ref.digest for ref in datasets),
        batch_size=recipe.train.batch_size,
        seed=recipe.train.seed,
    )


def open_outputs(request: TrainRequest, classes: int, steps: int) -> StoredOutputs | None:
    """The stored outputs that a training replays; None where its teacher answers at every step, or there is none.

    Args:
        request: the training.
        classes: K, of its datasets.
        steps: how long it is.

    Raises:
        RequestError: there are none, they are of another stream, or of fewer steps.
    """
    place = request.teacher_outputs
    if place is None:
        return None
    if not isinstance(request.recipe.objective, DistillConfig):
        raise RequestError(f"recipe {request.recipe.name!r} has no teacher to replay; leave its outputs away")
    outputs = read(place)
    if outputs is None:
        raise RequestError(f"{place} holds no outputs of a teacher; store them with: vit distill … --store-teacher")
    ours, theirs = stream_of(request.recipe, (request.data, *request.mixture)), outputs.stream
    if ours != theirs or outputs.classes != classes:
        raise RequestError(
            f"the outputs {place} are of another training ({_difference(ours, theirs)}): a teacher's outputs are those "
            "of one dataset version, data configuration, batch size and seed; store them with --store-teacher"
        )
    if outputs.steps < steps:
        raise RequestError(
            f"the outputs {place} go up to step {outputs.steps} of {steps}; store the rest with: "
            "vit distill … --store-teacher"
        )
    return StoredOutputs(place, outputs)


def _difference(ours: Stream, theirs: Stream) -> str:
    """What the streams differ in, by the names of a recipe's fields."""
    before, now = flatten(theirs), flatten(ours)
    names = [name for name in now if now[name] != before.get(name)]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    said = (f"{_FIELDS.get(name, name)} {now[name]} and not {before.get(name)}" for name in names[:_SHOWN])
    return ", ".join(said) + more or "other classes"
