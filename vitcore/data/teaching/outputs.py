"""Which outputs of a teacher lie beside a dataset, and how far they go.

<url>/_vit/teacher/<identity>/outputs.json                what they are, and the step up to which they are complete
<url>/_vit/teacher/<identity>/<first>-<stop>.safetensors  those of the steps first ≤ t < stop (`chunk`)

Order, augmentation and Mixup are functions of the seed, so that the pixels of every slot of every step are known before
anything is trained. Outputs are therefore kept by step and slot. Whoever trains on the same stream replays them,
whatever the student, its optimiser and its number of workers; who trains longer adds what is missing, who trains for
fewer steps reads a part.

A file is written once, whole or not at all, and its name says what is in it. `outputs.json` is there from the start,
with 0 complete steps, so that nobody takes the files of a writer for garbage; it is replaced once all files are there.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from pydantic import ValidationError

from vitcore import storage
from vitcore.data.dataset.manifest import FOLDER
from vitcore.errors import RequestError, WorkError
from vitcore.identity import digest
from vitcore.recipe import Config, DataConfig

FORMAT = 1
PLACE = "teacher"
FILE = "outputs.json"
_VIEWS = 2**14  # most views of a file: a piece of work of a minute or two on a CPU's core, of seconds on a GPU
_BYTES = 2**23  # most bytes of a file, for teachers of which many logits are kept


class Stream(Config):
    """What the pixels of every slot of every step follow from."""

    data: DataConfig
    datasets: tuple[str, ...]
    """Digests of the dataset's version and of those mixed in."""
    batch_size: int
    """B"""
    seed: int
    """`train.seed`"""


class Chunk(NamedTuple):
    """A stretch of steps whose outputs lie in one file."""

    first: int
    stop: int

    @property
    def name(self) -> str:
        """Of the file."""
        return f"{self.first:08d}-{self.stop:08d}.safetensors"


class Outputs(Config):
    """What `outputs.json` says."""

    format: int = FORMAT
    dataset: str
    """Digest of the version that they lie beside."""
    stream: Stream
    teacher: str
    """Digest of the teacher's weights."""
    ref: str
    """How the teacher was called by whoever stored its outputs first."""
    top: int
    """k: how many logits of a view are kept."""
    classes: int
    """K: how many there are."""
    span: int
    """Steps of a whole file."""
    steps: int
    """Steps, from 0, whose files are all there."""

    @property
    def identity(self) -> str:
        """16 hex digits: equal names, equal outputs."""
        return digest(
            {
                "format": FORMAT,
                "stream": self.stream.model_dump(mode="json"),
                "teacher": self.teacher,
                "top": self.top,
            }
        )

    def chunks(self) -> list[Chunk]:
        """All files of the complete steps, in order."""
        return [self.chunk(first) for first in range(0, self.steps, self.span)]

    def chunk(self, step: int) -> Chunk:
        """The file that holds a complete step."""
        first = step - step % self.span
        return Chunk(first, min(first + self.span, self.steps))


def span_of(batch_size: int, top: int, classes: int) -> int:
    """Steps of a whole file: a function of B, k and K, so that all writers cut alike."""
    slot = top * (2 + (2 if classes <= 2**15 else 4)) + 4
    return max(1, min(_VIEWS, _BYTES // slot) // batch_size)


def folder(url: str, identity: str) -> str:
    """Where outputs lie beside the dataset at `url`."""
    return storage.join(url, FOLDER, PLACE, identity)


def read(place: str) -> Outputs | None:
    """What a folder of outputs says of itself; None where there are none.

    Raises:
        RequestError: a newer release wrote them.
        WorkError: what it says is damaged.
    """
    name = storage.join(place, FILE)
    try:
        tree = json.loads(storage.read(name))
        if isinstance(tree, dict) and tree.get("format", 0) > FORMAT:
            raise RequestError(f"{name} has format {tree['format']}; this release reads up to {FORMAT}: upgrade")
        return Outputs.model_validate(tree)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except RequestError:
        raise
    except (ValueError, ValidationError, TypeError):
        raise WorkError(f"{name} is damaged; delete {place} and store the teacher's outputs again") from None


def commit(place: str, outputs: Outputs) -> None:
    """Say that outputs are complete up to `outputs.steps`, unless more of them are already."""
    name = storage.join(place, FILE)
    data = (outputs.model_dump_json(indent=1) + "\n").encode()
    while True:
        tag = storage.tag(name)  # before the reading: whoever writes between the two is found out
        known = read(place)
        if known is not None and known.steps >= outputs.steps:
            return
        if storage.replace(name, data, tag):
            return
