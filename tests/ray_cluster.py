"""A real Ray cluster of two nodes with a dashboard, a token and one core each, started outside any checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray.job_submission import JobSubmissionClient

from tests.s3 import free_ports

RAY = Path(sys.executable).parent / "ray"
TOKEN = "a-token-for-these-tests-0123456789abcdef"


@dataclass(frozen=True)
class Cluster:
    """Where it is and what its processes inherit."""

    folder: Path
    address: str

    @property
    def variables(self) -> dict[str, str]:
        """What a client of the cluster sets."""
        return {
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
        }

    @property
    def client(self) -> JobSubmissionClient:
        """A client of its dashboard in this process, which is not set to tokens otherwise."""
        return JobSubmissionClient(self.address, headers=self._headers)

    def free_cores(self) -> float:
        """Cores that nothing holds, as the cluster counts them."""
        request = urllib.request.Request(f"{self.address}/api/cluster_status", headers=self._headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            status: dict[str, Any] = json.load(answer)["data"]["clusterStatus"]
        used, total = status["loadMetricsReport"]["usage"]["CPU"]
        return float(total - used)

    @property
    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {TOKEN}"}


@contextmanager
def serving() -> Iterator[Cluster]:
    """Start the two nodes; every process of theirs is stopped at the end."""
    folder = Path(tempfile.mkdtemp(prefix="vit-c-", dir="/tmp"))  # sockets need a short path
    (folder / "token").write_text(TOKEN)
    port, dashboard, client = free_ports(3)
    cluster = Cluster(folder, f"http://127.0.0.1:{dashboard}")
    environment = {**os.environ, **cluster.variables, "RAY_USAGE_STATS_ENABLED": "0", "VIT_HOME": str(folder / "home")}
    for name in ("PYTHONPATH", "RAY_ADDRESS", "PREFECT_API_URL"):
        environment.pop(name, None)

    def start(node: str, *arguments: str) -> None:
        listen, grpc = free_ports(2)
        ports = [f"--dashboard-agent-listen-port={listen}", f"--dashboard-agent-grpc-port={grpc}"]
        command = [RAY, "start", f"--temp-dir={folder / node}", "--num-cpus=1", *ports, *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        start(
            "a",
            "--head",
            f"--port={port}",
            f"--ray-client-server-port={client}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}",
        )
        start("b", f"--address=127.0.0.1:{port}", "--node-ip-address=127.0.0.2")
        yield cluster
    finally:
        stop(folder)


def stop(folder: Path) -> None:
    """Kill what runs out of a cluster's folder, and the job processes that it started; then remove the folder."""
    for _ in range(3):
        for process in processes(folder):
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.3)
    shutil.rmtree(folder, ignore_errors=True)


def processes(folder: Path) -> list[psutil.Process]:
    """The processes of a cluster: those that name its folder, or inherited its home."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            mine = str(folder) in " ".join(process.cmdline())
            if mine or process.environ().get("VIT_HOME") == str(folder / "home"):
                found.append(process)
    return found
