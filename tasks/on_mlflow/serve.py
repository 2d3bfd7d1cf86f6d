"""A registered model as MLflow loads and serves it: encoded photographs in, class and probabilities out.

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
from vitcore.evals.photographs import probabilities, view
from vitcore.models.pretrained import Pretrained, load_pretrained


class ImageClassifier(PythonModel):
    """Classifies the photographs in the column `image`: bytes of a JPEG, PNG or WebP file, or their base64 text."""

    pretrained: Pretrained

    def load_context(self, context: PythonModelContext) -> None:
        """Read the weights: safetensors and JSON, nothing that could run code."""
        self.pretrained = load_pretrained(Path(context.artifacts["pretrained"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row a photograph: `class`, its `probability`, and `probabilities` by class name.

        Raises:
            MlflowException: a value is no photograph; says which and why (HTTP 400 when served).
        """
        views = [self._view(row, value) for row, value in enumerate(model_input["image"])]
        card = self.pretrained.card
        names = card.classes or tuple(str(index) for index in range(card.num_classes))
        rows = []
        for shares in probabilities(self.pretrained, views).tolist() if views else ():
            best = max(range(len(names)), key=shares.__getitem__)
            by_name = dict(zip(names, shares, strict=True))
            rows.append({"class": names[best], "probability": shares[best], "probabilities": by_name})
        return pd.DataFrame(rows, columns=["class", "probability", "probabilities"])

    def _view(self, row: int, value: Any) -> Tensor:
        try:
            data = base64.b64decode(value, validate=True) if isinstance(value, str) else bytes(value)
            return view(data, self.pretrained.card)
        except (BadSampleError, binascii.Error, TypeError) as error:
            raise MlflowException.invalid_parameter_value(f"row {row} of 'image' is no photograph: {error}") from error


mlflow.models.set_model(ImageClassifier())
