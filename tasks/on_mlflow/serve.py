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
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from torch import Tensor

from vitcore.data.augment import evaluation_view
from vitcore.data.decode import BadSampleError, decode
from vitcore.models.pretrained import Pretrained, load_pretrained

_BATCH = 32
_CROP_SHARE = 0.875


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
        images = [self._pixels(row, value) for row, value in enumerate(model_input["image"])]
        rows: list[dict[str, Any]] = []
        for start in range(0, len(images), _BATCH):
            rows += self._classify(torch.stack(images[start : start + _BATCH]))
        return pd.DataFrame(rows, columns=["class", "probability", "probabilities"])

    @torch.inference_mode()
    def _classify(self, images_BCHW: Tensor) -> list[dict[str, Any]]:
        model, card = self.pretrained.model, self.pretrained.card
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (model.config.mean, model.config.std))
        logits_BK = model((images_BCHW.float() / 255 - mean) / std)
        names = card.classes or tuple(str(index) for index in range(card.num_classes))
        rows = []
        for shares in logits_BK.float().softmax(1).tolist():
            best = max(range(len(names)), key=shares.__getitem__)
            rows.append(
                {
                    "class": names[best],
                    "probability": shares[best],
                    "probabilities": dict(zip(names, shares, strict=True)),
                }
            )
        return rows

    def _pixels(self, row: int, value: Any) -> Tensor:
        card = self.pretrained.card
        try:
            data = base64.b64decode(value, validate=True) if isinstance(value, str) else bytes(value)
            image_CHW = decode(data)
        except (BadSampleError, binascii.Error, TypeError) as error:
            raise MlflowException.invalid_parameter_value(f"row {row} of 'image' is no photograph: {error}") from error
        view_CHW = torch.empty(3, card.image_size, card.image_size, dtype=torch.uint8)
        resize = round(card.image_size / _CROP_SHARE) if card.resize is None else card.resize
        evaluation_view(image_CHW, view_CHW, resize)
        return view_CHW


mlflow.models.set_model(ImageClassifier())
