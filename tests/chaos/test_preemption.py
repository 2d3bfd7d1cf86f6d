"""A node is to be taken away while it trains: a checkpoint, and on to another node, with no step lost."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tasks.on_mlflow.events import read_events
from tests.chaos.training import Training, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
STEPS = 400
PATIENCE = {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5"}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head that computes nothing, and one node of one core."""
    folder = tempfile.mkdtemp(prefix="vit-", dir="/tmp")  # sockets need a short path
    monkeypatch.setenv("RAY_TMPDIR", folder)
    nodes = Cluster()
    try:
        nodes.add_node(num_cpus=0, include_dashboard=False, env_vars=PATIENCE)
        nodes.add_node(num_cpus=1, env_vars=PATIENCE)
        yield nodes
    finally:
        nodes.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_node_that_is_drained_is_left_behind_a_checkpoint(tmp_path: Path, home: Path, cluster: Cluster) -> None:
    leaving = cluster.list_all_nodes()[-1].node_id
    training = Training(tmp_path, home, STEPS, STEPS, "--compute.workers", "1")
    environment = {**training.environment, **PATIENCE, "RAY_ADDRESS": cluster.address}
    with (tmp_path / "said.log").open("w") as said:
        process = subprocess.Popen(training.command, env=environment, stderr=said, stdout=said)
        wait_for(lambda: len(training.steps()) >= 5, 240, "the first steps")
        cluster.add_node(num_cpus=1, env_vars=PATIENCE)
        drain = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", cluster.address]
        drain += ["--node-id", leaving, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken away"]
        subprocess.run([*drain, "--deadline-remaining-seconds", "60"], check=True, capture_output=True, timeout=60)
        assert process.wait(250) == 0, (tmp_path / "said.log").read_text()
    events = read_events(training.run().data.tags)
    (preempted,) = [event for event in events if event.kind == "preempted"]
    (resumed,) = [event for event in events if event.kind == "resumed"]
    assert 5 <= preempted.step < STEPS
    assert resumed.step == preempted.step
    assert training.steps() == list(range(1, STEPS + 1))
    assert training.versions() == 1
