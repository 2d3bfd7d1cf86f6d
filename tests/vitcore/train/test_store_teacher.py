"""Stored outputs of a teacher: a student that replays them learns what one learns that asks the teacher every time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import state
from vitcore.data.dataset.manifest import Dataset, DatasetRef
from vitcore.data.ingest.parallel import threads
from vitcore.data.loading.batch import to_inputs
from vitcore.data.teaching import outputs as layout
from vitcore.data.teaching.outputs import Chunk, read
from vitcore.errors import RequestError, WorkError
from vitcore.models import save_pretrained
from vitcore.objectives import Frozen
from vitcore.recipe import DeitConfig, DistillConfig, Recipe, apply_overrides
from vitcore.sink import NullSink
from vitcore.train import loop, teacher
from vitcore.train.learner import Learner
from vitcore.train.loop import train
from vitcore.train.overfit import overfit_one_batch
from vitcore.train.request import TrainRequest, open_dataset
from vitcore.train.store_teacher import Piece, TeachRequest, store_outputs, wanted
from vitcore.world import World

pytestmark = pytest.mark.usefixtures("one_thread")

MIXED = {
    "data.augment.mixup": 0.8,
    "data.augment.cutmix": 1.0,
    "data.augment.mix_prob": 0.8,
    "data.augment.randaug_layers": 1,
    "data.repeats": 3,
    "data.error_budget": 0.5,
}


class Recorder(NullSink):
    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}

    def log(self, step: int, metrics: Any) -> None:
        self.steps[step] = dict(metrics)


def run(request: TrainRequest) -> dict[int, dict[str, float]]:
    recorder = Recorder()
    train(request, World(), recorder)
    return recorder.steps


def furthest(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours if name.startswith("model/"))


def files(place: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(place).iterdir()}


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps of 20 slots a file."""
    monkeypatch.setattr(layout, "_VIEWS", 60)


@pytest.fixture
def data(toy: Dataset, tmp_path: Path) -> DatasetRef:
    """A copy that may be written to."""
    shutil.copytree(toy.url, tmp_path / "data")
    return DatasetRef(url=str(tmp_path / "data"), digest=toy.digest)


@pytest.fixture
def student(plain: Recipe) -> Recipe:
    """A DeiT that follows the distribution of a teacher, on mixed and repeated views."""
    deit = DeitConfig(**plain.model.model_dump(exclude={"kind", "pooling"}))
    recipe = plain.model_copy(update={"objective": DistillConfig(mode="soft", tau=2.0), "model": deit})
    return apply_overrides(recipe, MIXED)


@pytest.fixture
def ask(plain: Recipe, make_request: Any, tmp_path: Path) -> Callable[..., TeachRequest]:
    """`ask(recipe, data)`: a teacher that has opinions, asked about the stream of a training."""
    learner = Learner(make_request(plain, "teacher-run"), open_dataset(plain, make_request(plain).data), World())
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in learner.objective.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    digest = save_pretrained(tmp_path / "teacher", learner.objective.model, learner.card())

    def ask(recipe: Recipe, data: DatasetRef, **more: Any) -> TeachRequest:
        compute = make_request(recipe).compute
        return TeachRequest(
            recipe=recipe, compute=compute, data=data, teacher=str(tmp_path / "teacher"), digest=digest, **more
        )

    return ask


@pytest.fixture
def training(make_request: Any) -> Callable[..., TrainRequest]:
    """`training(asked, folder, outputs)`: the training whose teacher was asked, live or replaying."""

    def training(asked: TeachRequest, folder: str, outputs: str | None = None, **compute: Any) -> TrainRequest:
        places = {"data": asked.data, "teacher": asked.teacher, "teacher_outputs": outputs}
        return make_request(asked.recipe, folder, **compute).model_copy(update=places)

    return training


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_a_replaying_student_equals_one_that_asks(
    student: Recipe, ask: Any, training: Any, processes: Any, spoil: Any, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """On one, two and three ranks with uneven lanes, with bad samples, in micro-batches."""
    student = apply_overrides(student, {"objective.mode": mode})
    asked = ask(student, spoil("train", 3, 50))
    place = store_outputs(asked)
    assert [name for name in sorted(files(place)) if name != layout.FILE] == [
        "00000000-00000003.safetensors",
        "00000003-00000006.safetensors",
        "00000006-00000008.safetensors",
    ]
    live = training(asked, "live")
    expected = run(live)
    shutil.move(asked.teacher, f"{asked.teacher}-away")  # nobody asks it any more
    sizes = (1, 2, 3) if mode == "soft" else (1, 3)
    requests = {size: training(asked, f"w{size}", place, microbatch=8) for size in sizes}
    seen = {1: run(requests[1])}
    for size in sizes[1:]:
        job = {"tasks": [["train", requests[size].model_dump(mode="json")]]}
        ranks = [answers[0] for answers in processes.group(size, job)]
        seen[size] = {int(step): metrics for step, metrics in ranks[0]["metrics"].items()}
    for size, metrics in seen.items():
        assert furthest(state(requests[size], 8), state(live, 8)) < 2e-4
        for step in range(1, 9):
            assert metrics[step]["train/loss"] == pytest.approx(expected[step]["train/loss"], abs=1e-3)
            assert metrics[step]["train/teacher_agreement"] == pytest.approx(
                expected[step]["train/teacher_agreement"], abs=1e-6
            )


def test_every_view_is_the_one_the_teacher_saw(student: Recipe, ask: Any, data: DatasetRef, training: Any) -> None:
    """What is replayed at a step is what the teacher says of that step's pixels."""
    asked = ask(student, data)
    request = training(asked, "run", store_outputs(asked))
    frozen = Frozen(teacher.load_teacher(asked.teacher, ("b", "g", "r")), torch.device("cpu"))
    far: list[float] = []

    def compare(learner: Learner, batch: Any, wishes: loop.Wishes) -> loop.Update:
        assert batch.teacher is not None
        said = batch.teacher.dense(3).log_softmax(1)
        meant = frozen(to_inputs(batch, torch.device("cpu")).images_SCHW).log_softmax(1)
        far.append(float((said - meant).abs().max()))
        assert torch.equal(batch.teacher.classes_SK[:, 0], meant.argmax(1))
        learner.progress.step += 1
        return loop.Update({"loss": 0.0}, False, 0, False, waits_s=(0.0,))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "optimise", compare)
        patch.setattr(loop, "_validate_and_keep", lambda *_: {})
        train(request, World(), NullSink())
    assert len(far) == 8
    assert 0 < max(far) < 2e-3


def test_few_logits_keep_the_decisions(student: Recipe, ask: Any, data: DatasetRef, training: Any) -> None:
    hard = apply_overrides(student, {"objective.mode": "hard"})
    asked = ask(hard, data, top=1)
    live, replayed = training(asked, "live"), training(asked, "replayed", store_outputs(asked))
    expected, metrics = run(live), run(replayed)
    for step in range(1, 9):
        assert metrics[step]["train/loss"] == pytest.approx(expected[step]["train/loss"], abs=1e-6)
    assert furthest(state(replayed, 8), state(live, 8)) < 1e-6


@pytest.mark.usefixtures("small_files")
def test_a_training_resumes_in_the_middle_of_a_file(student: Recipe, ask: Any, data: DatasetRef, training: Any) -> None:
    asked = ask(student, data)
    place = store_outputs(asked)
    whole, torn = training(asked, "whole", place), training(asked, "torn", place)
    run(whole)
    run(torn)
    for step in (6, 7, 8):
        shutil.rmtree(Path(torn.checkpoints) / f"step-{step:08d}")
    (Path(place) / "00000000-00000003.safetensors").unlink()  # is not read again
    assert sorted(run(torn)) == [6, 7, 8]
    assert furthest(state(torn, 8), state(whole, 8)) == 0


class KilledError(Exception):
    pass


@pytest.mark.usefixtures("small_files")
def test_a_killed_writer_goes_on_and_ends_in_the_same_files(
    student: Recipe, ask: Any, data: DatasetRef, training: Any
) -> None:
    asked = ask(student, data)
    whole = files(store_outputs(asked))
    place = wanted(asked).place
    shutil.rmtree(place)

    def killed(store: Callable[[Piece], None], pieces: Sequence[Piece]) -> Iterator[tuple[int, None]]:
        for position, piece in enumerate(pieces):
            if piece.chunk.first == 6:
                raise KilledError
            yield position, store(piece)

    with pytest.raises(KilledError):
        store_outputs(asked, mapper=killed)
    left = files(place)
    assert len(left) == 3
    assert all(left[name] == whole[name] for name in left if name != layout.FILE)
    known = read(place)
    assert known is not None
    assert known.steps == 0
    with pytest.raises(RequestError, match="go up to step 0 of 8; store the rest"):
        run(training(asked, "early", place))

    done: list[tuple[int, int]] = []
    again: list[Chunk] = []

    def watched(store: Callable[[Piece], None], pieces: Sequence[Piece]) -> Iterator[tuple[int, None]]:
        again.extend(piece.chunk for piece in pieces)
        return threads()(store, pieces)

    assert store_outputs(asked, mapper=watched, progress=lambda *told: done.append(told)) == place
    assert again == [(6, 8)]
    assert done == [(2, 2)]
    assert files(place) == whole
    assert wanted(asked).missing == ()


@pytest.mark.usefixtures("small_files")
def test_longer_students_add_what_is_missing_and_shorter_ones_read_a_part(
    student: Recipe, ask: Any, data: DatasetRef, training: Any
) -> None:
    longer = apply_overrides(student, {"train.duration": "11 steps", "model.depth": 1, "optim.lr": 1e-4})
    place = store_outputs(ask(student, data))
    before = files(place)
    asked = ask(longer, data)
    missing = wanted(asked).missing
    assert missing == ((6, 9), (9, 11))
    assert store_outputs(asked) == place
    after = files(place)
    assert all(after[name] == before[name] for name in before if name != layout.FILE)  # for those who read them now
    assert sorted(run(training(asked, "longer", place))) == list(range(1, 12))
    shorter = ask(apply_overrides(student, {"train.duration": "7 steps"}), data)
    assert wanted(shorter).missing == ()
    assert sorted(run(training(shorter, "shorter", place))) == list(range(1, 8))
    store_outputs(ask(student, data))
    assert files(place) == after


@pytest.mark.usefixtures("small_files")
def test_a_damaged_file_is_named_and_stored_again(student: Recipe, ask: Any, data: DatasetRef, training: Any) -> None:
    asked = ask(student, data)
    place = store_outputs(asked)
    whole = files(place)
    path = Path(place) / "00000003-00000006.safetensors"
    other = (Path(place) / "00000000-00000003.safetensors").read_bytes()
    content = path.read_bytes()
    for number, damaged in enumerate(
        (
            content[:-1] + bytes([content[-1] ^ 1]),
            content[: len(content) // 2],
            content.replace(b'"sha256\\":\\"', b'"sha256\\":\\"0', 1),
            b"",
            other,
        )
    ):
        path.write_bytes(damaged)
        with pytest.raises(WorkError, match=rf"{path.name} are damaged; delete this file"):
            run(training(asked, f"damaged-{number}", place))
    path.unlink()
    with pytest.raises(WorkError, match=rf"{path.name} are missing; store them again"):
        run(training(asked, "missing", place))
    store_outputs(asked)
    assert files(place) == whole


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"train.seed": 4}, False),
        ({"train.batch_size": 25}, False),
        ({"data.augment.hflip": 0.4}, False),
        ({"data.lanes": 4}, False),
        ({"optim.lr": 1.0, "model.width": 64, "objective.alpha": 0.1, "train.duration": "9 steps"}, True),
    ],
)
def test_outputs_belong_to_a_stream(
    student: Recipe, ask: Any, data: DatasetRef, training: Any, changed: dict[str, Any], same: bool
) -> None:
    before, after = ask(student, data), ask(apply_overrides(student, changed), data)
    assert (wanted(before).place == wanted(after).place) == same
    if not same:
        with pytest.raises(RequestError, match=rf"are of another training \({next(iter(changed))} "):
            run(training(after, "run", store_outputs(before)))


def test_another_teacher_or_number_of_logits_are_other_outputs(student: Recipe, ask: Any, data: DatasetRef) -> None:
    asked = ask(student, data)
    places = {
        wanted(asked).place,
        wanted(asked.model_copy(update={"top": 2})).place,
        wanted(asked.model_copy(update={"digest": "0" * 64})).place,
    }
    assert len(places) == 3
    assert wanted(asked.model_copy(update={"top": 500})).place == wanted(asked).place  # there are only three classes
    with pytest.raises(RequestError, match="0 logits of a view cannot be kept"):
        wanted(asked.model_copy(update={"top": 0}))


def test_wrong_requests(
    plain: Recipe, student: Recipe, ask: Any, data: DatasetRef, training: Any, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="'plain' learns from no teacher"):
        wanted(ask(plain, data))
    asked = ask(student, data)
    with pytest.raises(RequestError, match="holds no outputs of a teacher; store them with: vit distill"):
        run(training(asked, "run", str(tmp_path / "nowhere")))
    place = store_outputs(asked)
    with pytest.raises(RequestError, match="'plain' has no teacher to replay"):
        run(training(ask(plain, data), "run", place))
    said = json.loads((Path(place) / layout.FILE).read_text())
    (Path(place) / layout.FILE).write_text(json.dumps({**said, "format": 99}))
    with pytest.raises(RequestError, match="format 99; this release reads up to 1: upgrade"):
        run(training(asked, "run", place))
    (Path(place) / layout.FILE).write_text("{")
    with pytest.raises(WorkError, match="is damaged; delete"):
        run(training(asked, "run", place))


def test_a_teacher_whose_logits_are_not_finite(student: Recipe, ask: Any, data: DatasetRef) -> None:
    asked = ask(student, data)
    loaded = teacher.load_teacher(asked.teacher, ("b", "g", "r"))
    with torch.no_grad():
        loaded.get_parameter("head.bias").fill_(torch.inf)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitcore.train.store_teacher.load_teacher", lambda *_: loaded)
        with pytest.raises(WorkError, match="not finite at step 0"):
            store_outputs(asked)


def test_one_batch_is_memorised_with_the_teacher_itself(
    student: Recipe, ask: Any, data: DatasetRef, training: Any
) -> None:
    """Its stored outputs are of augmented views, which are not those that are memorised."""
    asked = ask(student, data)
    request = training(asked, "run", store_outputs(asked))
    with pytest.raises(WorkError, match="not memorised in 2 steps"):
        overfit_one_batch(request, World(), NullSink(), steps=2)
