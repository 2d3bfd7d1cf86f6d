import os
from pathlib import Path

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database without content: the migrations take seconds, a copy none."""
    from tasks.on_mlflow.client import client

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    client(f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture
def uri(tmp_path: Path, empty_store: Path) -> str:
    copy = tmp_path / "mlflow.db"
    copy.write_bytes(empty_store.read_bytes())
    return f"sqlite:///{copy}"


@pytest.fixture
def run_id(uri: str) -> str:
    from tasks.on_mlflow.runs import open_run

    return open_run(uri, experiment="elpv", identity="train-1", name="deit", params={}, tags={})
