import base64
import io
import os

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import pyfunc
from mlflow.exceptions import MlflowException
from PIL import Image

from tasks.on_mlflow import models, registry
from tasks.on_mlflow.client import client
from vitcore.errors import RequestError, WorkError
from vitcore.evals.photographs import features, view
from vitcore.evals.represent import text_embeddings
from vitcore.models import ModelCard, build, load_pretrained, save_pretrained
from vitcore.recipe import ClipConfig, TextConfig, VitConfig


@pytest.fixture
def folder(tmp_path):
    config = VitConfig(patch=8, width=16, depth=1, heads=2)
    torch.manual_seed(0)
    model = build(config, num_classes=2, image_size=16).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    card = ModelCard(model=config, image_size=16, num_classes=2, classes=("functional", "defective"))
    save_pretrained(tmp_path / "product", model, card)
    return tmp_path / "product"


def save_without_head(folder, config):
    torch.manual_seed(0)
    model = build(config, num_classes=0, image_size=16).eval()
    for parameter in model.parameters():
        if parameter.ndim:
            torch.nn.init.normal_(parameter, std=0.2)
    save_pretrained(folder, model, ModelCard(model=config, image_size=16, num_classes=0))
    return folder


def loaded(uri, run_id, folder, photograph):
    """The model as MLflow hands it to whoever serves it, and the folder it was logged as."""
    logged = models.log_model(uri, run_id, folder, photograph)
    where = client(uri).get_logged_model(logged.removeprefix("models:/")).artifact_location
    return pyfunc.load_model(where)


@pytest.fixture
def photograph():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def registered(uri, run_id, folder, photograph):
    logged = models.log_model(uri, run_id, folder, photograph)
    return registry.register(
        uri, name="elpv", identity="train-1", run_id=run_id, model_uri=logged, tags={}, description=""
    )


def test_a_registered_model_predicts(uri, registered, photograph, folder):
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    model = pyfunc.load_model(client(uri).get_model_version_download_uri("elpv", "1"))
    frame = pd.DataFrame({"image": [photograph, photograph]})
    answer = model.predict(frame)
    assert list(answer.columns) == ["class", "probability", "probabilities"]
    row = answer.iloc[0]
    assert set(row["probabilities"]) == {"functional", "defective"}
    assert sum(row["probabilities"].values()) == pytest.approx(1)
    assert row["probability"] == row["probabilities"][row["class"]] == max(row["probabilities"].values())

    encoded = base64.b64encode(photograph).decode()
    unwrapped = model.unwrap_python_model().predict(None, pd.DataFrame({"image": [encoded]}))
    assert unwrapped.iloc[0]["probability"] == pytest.approx(row["probability"])
    with pytest.raises(MlflowException, match="row 1 of 'image' is no photograph"):
        model.predict(pd.DataFrame({"image": [photograph, b"nonsense"]}))


def test_a_backbone_gives_features(uri, run_id, tmp_path, photograph):
    folder = save_without_head(tmp_path / "backbone", VitConfig(patch=8, width=16, depth=1, heads=2))
    model = loaded(uri, run_id, folder, photograph)
    assert [column.name for column in model.metadata.signature.outputs] == ["features"]
    found = model.predict(pd.DataFrame({"image": [photograph, photograph]}))
    assert list(found.columns) == ["features"]
    pretrained = load_pretrained(folder)
    expected = features(pretrained, [view(photograph, pretrained.card)])[0].tolist()
    assert found["features"][1] == pytest.approx(expected, abs=1e-5)
    assert len(expected) == 16
    with pytest.raises(MlflowException, match="row 0 of 'image' is no photograph"):
        model.predict(pd.DataFrame({"image": [b"nonsense"]}))


def test_a_clip_embeds_images_and_texts(uri, run_id, tmp_path, photograph):
    image, text = VitConfig(patch=8, width=16, depth=1, heads=2), TextConfig(width=16, depth=1, heads=2)
    folder = save_without_head(tmp_path / "clip", ClipConfig(width=8, image=image, text=text))
    model = loaded(uri, run_id, folder, photograph)
    pretrained = load_pretrained(folder)
    image = features(pretrained, [view(photograph, pretrained.card)])[0].tolist()
    text = text_embeddings(pretrained, ["a dog"])[0].tolist()

    both = model.predict(pd.DataFrame({"image": [None, photograph], "text": ["a dog", None]}))
    assert both["embedding"][0] == pytest.approx(text, abs=1e-5)
    assert both["embedding"][1] == pytest.approx(image, abs=1e-5)
    assert model.predict(pd.DataFrame({"text": ["a dog"]}))["embedding"][0] == pytest.approx(text, abs=1e-5)
    assert model.predict(pd.DataFrame({"image": [photograph]}))["embedding"][0] == pytest.approx(image, abs=1e-5)
    with pytest.raises(MlflowException, match="row 1 must hold either an 'image' or a 'text'"):
        model.predict(pd.DataFrame({"image": [photograph, photograph], "text": [None, "a dog"]}))


def test_a_clip_asks_for_the_package_of_its_vocabulary(folder, tmp_path):
    image, text = VitConfig(patch=8, width=16, depth=1, heads=2), TextConfig(width=16, depth=1, heads=2)
    clip = save_without_head(tmp_path / "clip", ClipConfig(width=8, image=image, text=text))
    needs = {name: models._requirements(models._card_of(path)) for name, path in (("clip", clip), ("vit", folder))}
    assert any(line.startswith("open_clip_torch==") for line in needs["clip"])
    assert not any("open_clip" in line for line in needs["vit"])


def test_what_is_logged_holds_no_pickle_and_says_what_it_needs(uri, registered, tmp_path):
    files = [path for path in (tmp_path / "mlartifacts" / "elpv" / "models").rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"MLmodel", "model.safetensors", "config.json", "serve.py", "input_example.json"} <= names
    assert not [path for path in files if path.suffix in (".pkl", ".pyc", ".pt")]
    requirements = next(path for path in files if path.name == "requirements.txt").read_text()
    assert all(f"{name}==" in requirements for name in ("torch", "simplejpeg"))
    assert "+" not in requirements
    assert client(uri).get_run(registered.run_id).outputs.model_outputs


def test_logging_the_same_weights_again_logs_nothing(uri, run_id, folder, photograph):
    first = models.log_model(uri, run_id, folder, photograph)
    assert models.log_model(uri, run_id, folder, photograph) == first
    (folder / "config.json").unlink()
    with pytest.raises(WorkError, match="is missing"):
        models.log_model(uri, run_id, folder, photograph)


def test_fetching_gives_the_folder_back_once(uri, registered, folder, tmp_path):
    into = tmp_path / "cache"
    fetched = models.fetch(uri, "models:/elpv/1", into)
    assert load_pretrained(fetched).digest == load_pretrained(folder).digest
    stamp = (fetched / "model.safetensors").stat().st_mtime_ns
    assert models.fetch(uri, "models:/elpv/latest", into) == fetched
    assert (fetched / "model.safetensors").stat().st_mtime_ns == stamp
    assert [path.name for path in into.iterdir()] == [fetched.name]
    with pytest.raises(RequestError, match="no version"):
        models.fetch(uri, "models:/elpv/2", into)


def test_fetching_what_is_not_there_is_one_sentence(uri, tmp_path):
    registry.register(uri, name="gone", identity="x", run_id="", model_uri="/nowhere", tags={}, description="")
    with pytest.raises(WorkError, match="cannot be fetched"):
        models.fetch(uri, "models:/gone/1", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
