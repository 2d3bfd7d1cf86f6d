"""A registered model as MLflow loads and serves it: encoded photographs in; classes, features or embeddings out.

This file travels with the model and is run where the model is loaded: it knows the model's folder and `vitcore` (a
copy of which lies beside it), nothing else of this project.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from torch import Tensor

from vitcore.data.reading.decode import BadSampleError
from vitcore.evals.photographs import features, probabilities, view
from vitcore.evals.represent import text_embeddings
from vitcore.models.pretrained import Pretrained, load_pretrained


class ImageModel(PythonModel):
    """Answers for the photographs in the column `image`: bytes of a JPEG, PNG or WebP file, or their base64 text."""

    pretrained: Pretrained

    def load_context(self, context: PythonModelContext) -> None:
        """Read the weights: safetensors and JSON, nothing that could run code."""
        self.pretrained = load_pretrained(Path(context.artifacts["pretrained"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row a photograph.

        A classifier gives `class`, its `probability`, and `probabilities` by class name; a model without a head
        `features`. An image and text model gives an `embedding` of length 1 for each row, which holds either an
        `image` or a `text`.

        Raises:
            MlflowException: a value is no photograph; says which and why (HTTP 400 when served).
        """
        if self.pretrained.card.model.kind == "clip":
            return pd.DataFrame({"embedding": self._embeddings(model_input)})
        if "image" not in model_input:
            raise MlflowException.invalid_parameter_value("there is no column 'image' with photographs")
        views = [self._view(row, value) for row, value in enumerate(model_input["image"])]
        if not self.pretrained.card.num_classes:
            return pd.DataFrame({"features": features(self.pretrained, views).tolist()})
        return self._classes(views)

    def _classes(self, views: list[Tensor]) -> pd.DataFrame:
        card = self.pretrained.card
        names = card.classes or tuple(str(index) for index in range(card.num_classes))
        rows = []
        for shares in probabilities(self.pretrained, views).tolist() if views else ():
            best = max(range(len(names)), key=shares.__getitem__)
            by_name = dict(zip(names, shares, strict=True))
            rows.append({"class": names[best], "probability": shares[best], "probabilities": by_name})
        return pd.DataFrame(rows, columns=["class", "probability", "probabilities"])

    def _embeddings(self, rows: pd.DataFrame) -> list[list[float]]:
        """An embedding a row, of whichever of the two columns it fills."""
        found: list[list[float]] = [[]] * len(rows)
        images, texts = (rows[name] if name in rows else [None] * len(rows) for name in ("image", "text"))
        views, words = {}, {}
        for row, (image, text) in enumerate(zip(images, texts, strict=True)):
            if _given(image) == _given(text):
                raise MlflowException.invalid_parameter_value(f"row {row} must hold either an 'image' or a 'text'")
            if _given(image):
                views[row] = self._view(row, image)
            else:
                words[row] = str(text)
        if views:
            found = _placed(found, list(views), features(self.pretrained, list(views.values())).tolist())
        if words:
            found = _placed(found, list(words), text_embeddings(self.pretrained, list(words.values())).tolist())
        return found

    def _view(self, row: int, value: Any) -> Tensor:
        try:
            data = base64.b64decode(value, validate=True) if isinstance(value, str) else bytes(value)
            return view(data, self.pretrained.card)
        except (BadSampleError, binascii.Error, TypeError) as error:
            raise MlflowException.invalid_parameter_value(f"row {row} of 'image' is no photograph: {error}") from error


def _given(value: Any) -> bool:
    """Whether a cell holds something; an empty one is None or NaN."""
    return isinstance(value, str | bytes | bytearray | memoryview)


def _placed(rows: list[list[float]], places: list[int], values: list[list[float]]) -> list[list[float]]:
    """`rows` with `values` at `places`."""
    new = dict(zip(places, values, strict=True))
    return [new.get(place, row) for place, row in enumerate(rows)]


mlflow.models.set_model(ImageModel())
