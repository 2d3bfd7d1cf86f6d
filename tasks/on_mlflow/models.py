"""Models as MLflow keeps them: logged from code with their weights as safetensors, and fetched back as a folder.

A logged model carries everything it needs to be loaded or served elsewhere: weights and card, this project's `vitcore`
as it was, a signature, an input example and the versions of the few libraries it stands on. No pickle is involved.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import vitcore
from tasks.on_mlflow.card import Kind
from tasks.on_mlflow.client import client, connect
from tasks.on_mlflow.registry import resolve
from vitcore.errors import WorkError
from vitcore.models.pretrained import ModelCard
from vitcore.recipe import ClipConfig, CnnConfig

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient

FILE_DIGEST = "vit.file"
"""Tag of a logged model: SHA-256 of its weights file, so that a resumed task does not log it twice."""

_ARTIFACT = "pretrained"
_FILES = ("model.safetensors", "config.json")
_TYPES: dict[Kind, str] = {
    "classifier": "image-classifier",
    "backbone": "image-features",
    "clip": "image-text-embedder",
}
_SERVE = Path(__file__).with_name("serve.py")
_NEEDS = (
    "mlflow",
    "torch",
    "torchvision",
    "safetensors",
    "simplejpeg",
    "pillow",
    "numpy",
    "pandas",
    "pyarrow",
    "pydantic",
    "fsspec",
)


def log_model(tracking_uri: str, run_id: str, folder: Path, example_image: bytes, *, name: str = "model") -> str:
    """Log a folder that `save_pretrained` wrote as a model of a run.

    Args:
        tracking_uri: MLflow server or SQLite file.
        run_id: the run the model came out of.
        folder: holds ``model.safetensors`` and ``config.json``.
        example_image: an encoded photograph, kept as the input example.
        name: name of the model within the run.

    Returns:
        Its URI, ``models:/<id>``; the same one again for the same weights in the same run.

    Raises:
        WorkError: the folder is not whole.
    """
    missing = [file for file in _FILES if not (folder / file).is_file()]
    if missing:
        raise WorkError(f"{folder} is no finished model: {', '.join(missing)} is missing")
    mlflow = connect(tracking_uri)
    digest = hashlib.sha256((folder / _FILES[0]).read_bytes()).hexdigest()
    experiment_id = mlflow.get_run(run_id).info.experiment_id
    model_id = _logged(mlflow, experiment_id, run_id, digest) or _log(
        mlflow, experiment_id, run_id, name, folder, example_image, digest
    )
    return f"models:/{model_id}"


def fetch(tracking_uri: str, ref: str, into: Path) -> Path:
    """The folder (``model.safetensors`` and ``config.json``) of a registered version, below `into`.

    Downloaded once: the folder is named after the version and its weights, and appears whole or not at all.

    Raises:
        RequestError: `ref` names no registered version.
        WorkError: the version's files are not there, or it is not a model of this project.
    """
    version = resolve(tracking_uri, ref)
    target = into / f"{version.name}-{version.version}-{version.run_id[:8]}"
    if target.is_dir():
        return target
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into, prefix=".fetch-") as temporary:
        whole = _download(tracking_uri, version.name, version.version, Path(temporary))
        try:
            whole.rename(target)
        except OSError:
            if not target.is_dir():  # fetched by another process meanwhile
                raise
    return target


def kind_of(card: ModelCard) -> Kind:
    """What a model answers with."""
    if card.model.kind == "clip":
        return "clip"
    return "classifier" if card.num_classes else "backbone"


def signature(kind: Kind = "classifier") -> ModelSignature:
    """Bytes of an image file in; class, its probability and all probabilities out.

    A backbone answers with the features of the image; a CLIP takes an image or a text in each row, and answers with its
    embedding.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array, Map

    photograph = Schema([ColSpec(DataType.binary, "image")])
    if kind == "classifier":
        classes = Schema(
            [
                ColSpec(DataType.string, "class"),
                ColSpec(DataType.double, "probability"),
                ColSpec(Map(DataType.double), "probabilities"),
            ]
        )
        return ModelSignature(photograph, classes)
    if kind == "backbone":
        return ModelSignature(photograph, Schema([ColSpec(Array(DataType.double), "features")]))
    either = Schema(
        [ColSpec(DataType.binary, "image", required=False), ColSpec(DataType.string, "text", required=False)]
    )
    return ModelSignature(either, Schema([ColSpec(Array(DataType.double), "embedding")]))


def _log(
    mlflow: MlflowClient, experiment_id: str, run_id: str, name: str, folder: Path, example: bytes, digest: str
) -> str:
    """Build the model's folder here, upload it, and only then call it ready."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    card = _card_of(folder)
    logged = mlflow.create_logged_model(
        experiment_id, name, source_run_id=run_id, tags={FILE_DIGEST: digest}, model_type=_TYPES[kind_of(card)]
    )
    model = Model(
        artifact_path=logged.artifact_location, model_uuid=logged.model_id, run_id=run_id, model_id=logged.model_id
    )
    try:
        with tempfile.TemporaryDirectory() as temporary:
            built = Path(temporary) / "built"
            _build(built, Path(temporary) / _ARTIFACT, model, folder, card, example)
            mlflow.log_model_artifacts(logged.model_id, str(built))
        mlflow.finalize_logged_model(logged.model_id, "READY")
    except BaseException:
        mlflow.finalize_logged_model(logged.model_id, "FAILED")
        raise
    mlflow.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return str(logged.model_id)


def _build(built: Path, staged: Path, model: object, folder: Path, card: ModelCard, example: bytes) -> None:
    import pandas as pd
    from mlflow import pyfunc

    staged.mkdir()
    for file in _FILES:
        shutil.copyfile(folder / file, staged / file)
    pyfunc.save_model(
        path=str(built),
        mlflow_model=model,
        python_model=str(_SERVE),
        artifacts={_ARTIFACT: str(staged)},
        code_paths=[str(Path(vitcore.__file__).parent)],
        signature=signature(kind_of(card)),
        input_example=pd.DataFrame({"image": [example]}),
        pip_requirements=_requirements(card),
    )
    for cache in built.rglob("__pycache__"):
        shutil.rmtree(cache)


def _card_of(folder: Path) -> ModelCard:
    """The card in a model's folder, without the digest of its weights."""
    tree = json.loads((folder / _FILES[1]).read_text(encoding="utf-8"))
    return ModelCard.model_validate({name: tree[name] for name in ModelCard.model_fields if name in tree})


def _requirements(card: ModelCard) -> list[str]:
    """The libraries `vitcore` stands on, as installed here (without local labels such as ``+cpu``, which no index has).

    Said outright: MLflow's own inference would load the model in a new process to watch its imports.
    """
    config = card.model
    extra: tuple[str, ...] = ()
    if isinstance(config, CnnConfig) and config.name.startswith("efficientnet_lite"):
        extra = ("efficientnet_lite_pytorch",)
    if isinstance(config, CnnConfig) and config.name.startswith("timm/"):
        extra = ("timm",)
    if isinstance(config, ClipConfig):
        extra = ("open_clip_torch",)  # whose byte pairs the texts are read by
    return [f"{name}=={metadata.version(name).split('+')[0]}" for name in (*_NEEDS, *extra)]


def _logged(mlflow: MlflowClient, experiment_id: str, run_id: str, digest: str) -> str | None:
    for model in mlflow.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'"):
        if model.tags.get(FILE_DIGEST) == digest and str(model.status) == "READY":
            return str(model.model_id)
    return None


def _download(tracking_uri: str, name: str, version: int, into: Path) -> Path:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    source = client(tracking_uri).get_model_version_download_uri(name, str(version)).rstrip("/")
    try:
        found = download_artifacts(
            f"{source}/artifacts/{_ARTIFACT}", dst_path=str(into), tracking_uri=tracking_uri, registry_uri=tracking_uri
        )
    except (MlflowException, OSError) as error:
        raise WorkError(f"models:/{name}/{version} cannot be fetched from {source}: {error}") from error
    if any(not os.access(Path(found) / file, os.R_OK) for file in _FILES):
        raise WorkError(f"models:/{name}/{version} is not a model of this project: it has no {' and '.join(_FILES)}")
    return Path(found)
