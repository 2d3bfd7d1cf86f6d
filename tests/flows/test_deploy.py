"""deploy/ against a real Prefect API: every flow becomes a deployment with a form of its own; silent runs end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from prefect import get_client
from prefect.settings import PREFECT_API_URL

from tasks.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.mark.cluster
def test_every_flow_can_be_deployed(house: Settings) -> None:
    environment = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()}

    def prefect(*arguments: str) -> None:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    prefect("work-pool", "create", "vit", "--type", "process", "--overwrite")
    prefect("deploy", "--all", "--prefect-file", "deploy/prefect.yaml")
    prefect("automation", "create", "--from-file", "deploy/automations.yaml")
    with get_client(sync_client=True) as client:
        found = {deployment.entrypoint: deployment for deployment in client.read_deployments()}
    verbs = ("ingest", "pretrain", "distill", "finetune", "evaluate", "promote", "pipeline")
    assert set(found) == {f"flows/{verb}.py:{verb}" for verb in verbs}
    form = found["flows/finetune.py:finetune"].parameter_openapi_schema
    assert {"recipe", "data", "model"} <= set(form["required"])
    assert "workers" in form["definitions"]["Compute"]["properties"]
    assert {"vit-silent-runs-crash", "vit-silent-runs-start-again"} <= automations()


def automations() -> set[str]:
    """Names of the automations that the server keeps."""
    url = f"{PREFECT_API_URL.value()}/automations/filter"
    return {automation["name"] for automation in requests.post(url, json={}, timeout=30).json()}
