"""What a model said about every sample of a split: the ground on which all metrics and comparisons stand.

Legend: N samples, K classes.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcore import storage
from vitcore.errors import RequestError, WorkError
from vitcore.evals.metrics import IntArray, Logits, predicted

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Outcomes:
    """One model's logits for labelled samples.

    Raises:
        WorkError: no samples, shapes that do not fit, a label that is no class, a key twice, or logits that are not
            finite.
    """

    keys: NDArray[np.str_]
    """[N], unique"""
    labels: IntArray
    """[N], positions in `classes`"""
    logits: Logits
    """[N, K] float32"""
    classes: tuple[str, ...]
    """K names; the dataset's own first, then those that only the model knows"""
    skipped: tuple[str, ...] = ()
    """Keys of samples that could not be read and are not among the N"""

    def __post_init__(self) -> None:
        count, classes = len(self.keys), len(self.classes)
        if self.labels.shape != (count,) or self.logits.shape != (count, classes):
            raise WorkError(
                f"outcomes do not fit together: {count} keys, labels {list(self.labels.shape)}, logits "
                f"{list(self.logits.shape)}, {classes} classes"
            )
        if not count:
            raise WorkError("there are no outcomes: not one sample could be evaluated")
        if self.labels.min() < 0 or self.labels.max() >= classes:
            raise WorkError(f"a label lies outside the {classes} classes; evaluate a split whose samples all have one")
        if len(np.unique(self.keys)) != count:
            raise WorkError("a sample occurs twice among the outcomes")
        if not np.isfinite(self.logits).all():
            raise WorkError("the model's logits are not finite (NaN or infinite), so it cannot be evaluated")

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def predictions(self) -> IntArray:
        """Predicted class [N]."""
        return predicted(self.logits)

    def save(self, url: str) -> None:
        """Write as NumPy arrays (npz), whole or not at all, at a path or URL."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            format=np.array(FORMAT),
            keys=self.keys,
            labels=self.labels,
            logits=self.logits,
            classes=np.array(self.classes, dtype=np.str_),
            skipped=np.array(self.skipped, dtype=np.str_),
        )
        storage.write(url, buffer.getvalue())

    @classmethod
    def load(cls, url: str) -> Outcomes:
        """Read what `save` wrote; nothing in the file can run code.

        Raises:
            RequestError: there is no such file, or it holds no outcomes.
        """
        try:
            with np.load(io.BytesIO(storage.read(url)), allow_pickle=False) as arrays:
                found: dict[str, NDArray[Any]] = {name: arrays[name] for name in arrays.files}
            if int(found["format"]) > FORMAT:
                raise RequestError(f"{url} was written by a newer release (format {found['format']}): upgrade")
            return cls(
                keys=found["keys"].astype(np.str_),
                labels=found["labels"].astype(np.int64),
                logits=found["logits"].astype(np.float32),
                classes=tuple(found["classes"].tolist()),
                skipped=tuple(found["skipped"].tolist()),
            )
        except FileNotFoundError:
            raise RequestError(f"there are no outcomes at {url}; evaluate the model first") from None
        except (KeyError, zipfile.BadZipFile, EOFError, AttributeError, ValueError) as error:
            if isinstance(error, RequestError):
                raise
            raise RequestError(f"{url} holds no outcomes (they are written by an evaluation as .npz)") from None


def concat(parts: Sequence[Outcomes]) -> Outcomes:
    """The outcomes of several ranges of one split by one model, in the order given.

    Raises:
        WorkError: no parts, parts over different classes, or overlapping parts.
    """
    if not parts:
        raise WorkError("there are no outcomes to put together")
    if any(part.classes != parts[0].classes for part in parts):
        raise WorkError("outcomes over different classes cannot be put together")
    return Outcomes(
        keys=np.concatenate([part.keys for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        logits=np.concatenate([part.logits for part in parts]),
        classes=parts[0].classes,
        skipped=tuple(key for part in parts for key in part.skipped),
    )


def pair(a: Outcomes, b: Outcomes) -> tuple[Outcomes, Outcomes]:
    """Both outcomes over the same samples in the order of `a`, with the classes they share in the order of `a`.

    Classes that only one of the models knows follow after the shared ones, so that equal labels are equal numbers.

    Raises:
        RequestError: they do not cover the same samples, or disagree about a sample's class: evaluate both models on
            the same split of the same dataset version.
    """
    ours, theirs = np.argsort(a.keys, kind="stable"), np.argsort(b.keys, kind="stable")
    if len(a) != len(b) or not np.array_equal(a.keys[ours], b.keys[theirs]):
        shared = len(np.intersect1d(a.keys, b.keys))
        raise RequestError(
            f"the models were evaluated on different samples ({len(a)} and {len(b)}, {shared} of them shared); "
            "evaluate both on the same split of the same dataset version"
        )
    order = np.empty(len(a), dtype=np.int64)
    order[ours] = theirs
    shared_classes = [name for name in a.classes if name in set(b.classes)]
    first, second = _with_classes_first(a, shared_classes), _with_classes_first(b, shared_classes)
    second = Outcomes(b.keys[order], second.labels[order], second.logits[order], second.classes, b.skipped)
    named = np.array(first.classes)[first.labels] == np.array(second.classes)[second.labels]
    if not named.all():
        raise RequestError(
            f"the two evaluations disagree about the class of {int((~named).sum())} samples; "
            "evaluate both models on the same dataset version"
        )
    return first, second


def _with_classes_first(outcomes: Outcomes, names: Sequence[str]) -> Outcomes:
    """The same outcomes with their columns reordered: `names`, then the rest."""
    classes = (*names, *(name for name in outcomes.classes if name not in set(names)))
    if classes == outcomes.classes:
        return outcomes
    columns = np.array([outcomes.classes.index(name) for name in classes])
    position = np.empty_like(columns)
    position[columns] = np.arange(len(columns))
    return Outcomes(outcomes.keys, position[outcomes.labels], outcomes.logits[:, columns], classes, outcomes.skipped)
