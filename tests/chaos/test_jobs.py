"""A training as a job of a real cluster: shared, attached to again, cancelled, killed, continued, registered once."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

import psutil
import pytest
import requests
from mlflow.tracking import MlflowClient
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.states import Cancelled, Running
from ray.job_submission import JobStatus

from tests.chaos.training import dataset_of_shades, wait_for
from tests.ray_cluster import TOKEN, Cluster, processes, serving
from tests.s3 import free_ports

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
STEPS = 600
SECRET = "a-secret-of-the-store"
SETTINGS = [
    *("--data.image-size", "32"),
    *("--model.patch", "8"),
    *("--model.width", "32"),
    *("--model.depth", "2"),
    *("--model.heads", "2"),
    *("--train.batch-size", "16"),
    *("--train.duration", f"{STEPS} steps"),
    *("--eval.every", "300 steps"),
    *("--eval.resize", "32"),
    *("--compute.workers", "2"),
    *("--compute.checkpoint-every", "20 steps"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with serving() as started:
        yield started


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prefect server."""
    (port,) = free_ports(1)
    home = tmp_path_factory.mktemp("prefect")
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(command, env=os.environ | {"PREFECT_HOME": str(home)}, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}/api"
    try:
        wait_for(lambda: answers(f"{address}/health"), 120, "the Prefect server")
        yield address
    finally:
        server.terminate()
        server.wait(20)


@dataclass
class Vit:
    """Gives `vit` commands to the cluster."""

    home: Path
    environment: dict[str, str]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, name: str, *arguments: str) -> Command:
        return self.launch(name, "-m", "flows.cli.main", *arguments)

    def launch(self, name: str, *arguments: str, **changes: str) -> Command:
        log = self.home / f"{name}.log"
        environment = self.environment | changes
        with log.open("wb") as out:
            process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, stdout=out, stderr=out)
        self.started.append(process)
        return Command(process, log)

    def run(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.cli.main", *arguments]
        environment = self.environment | changes
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
        )


@dataclass
class Command:
    """A command that runs."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text()

    def says(self, words: str, seconds: float = 150) -> None:
        """Wait for some words."""
        wait_for(lambda: re.search(words, self.said) or self.process.poll() is not None, seconds, f"{words!r}")
        assert re.search(words, self.said), self.said

    def ends(self, seconds: float = 150) -> int:
        return self.process.wait(seconds)


@pytest.fixture(scope="module")
def vit(cluster: Cluster, api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vit]:
    home = tmp_path_factory.mktemp("home")
    environment = {
        **os.environ,
        **cluster.variables,
        "VIT_HOME": str(home),
        "VIT_API": api,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "PYTHONPATH": str(ROOT),
    }
    for name in ("VIT_TRACKING", "VIT_CHECKPOINTS"):
        environment.pop(name, None)
    given = Vit(home, environment)
    yield given
    for process in given.started:
        process.kill()


@pytest.fixture
def prefect(api: str) -> Iterator[SyncPrefectClient]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        yield client


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).ok
    except requests.RequestException:
        return False


@pytest.fixture(scope="module")
def shades(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of two classes."""
    return dataset_of_shades(tmp_path_factory.mktemp("shades"))


def entrypoint(cluster: Cluster) -> psutil.Process:
    """The process of the job that runs."""
    (found,) = [each for each in processes(cluster.folder) if each.cmdline()[1:3] == ["-m", "tasks.on_ray.job"]]
    return found


def workers(cluster: Cluster) -> list[psutil.Process]:
    """The processes that train."""
    return [each for each in processes(cluster.folder) if "RayTrainWorker" in " ".join(each.cmdline())]


def test_one_training_through_everything(cluster: Cluster, vit: Vit, shades: str, prefect: SyncPrefectClient) -> None:
    command = ["pretrain", "vit_tiny_cpu", "--data", shades, *SETTINGS]
    client, store = cluster.client, MlflowClient(f"sqlite:///{vit.home / 'mlflow.db'}")

    # Two flows want the same: one job, whose progress both show.
    first, second = vit.start("first", *command), vit.start("second", *command)
    for flow_of_two in (first, second):
        flow_of_two.says(r"\d+/600 steps, .* left, loss")
    assert sorted(re.findall(r"(submitted|attached to) job", first.said + second.said)) == ["attached to", "submitted"]
    (job,) = json.loads(vit.run("jobs", "--json").stdout)
    assert (job["attempt"], job["state"], job["flow_state"]) == (1, "RUNNING", "Running")
    name = job["id"].removesuffix("-1")

    # A flow dies without a word; the same command finds the job, and a cancel frees everything.
    assert len(workers(cluster)) == 2
    for worker in workers(cluster):  # so that it is not done before
        worker.suspend()
    first.process.kill()
    again = vit.start("again", *command)
    again.says(r"attached to job .*-1, running since")
    for worker in workers(cluster):
        worker.resume()
    again.says(r"\d+/600 steps")
    reached = max(int(step) for step in re.findall(r"(\d+)/600 steps", again.said))
    assert reached > 1
    assert client.get_job_status(f"{name}-1") == JobStatus.RUNNING
    again.process.send_signal(signal.SIGTERM)
    assert again.ends(60) != 0
    assert client.get_job_status(f"{name}-1") == JobStatus.STOPPED
    assert second.ends(60) == 1
    assert "was stopped; the same command goes on where it was" in second.said
    wait_for(lambda: cluster.free_cores() == 2, 30, "freeing the cores")
    (run,) = store.search_runs([found.experiment_id for found in store.search_experiments() if found.name == "shades"])
    assert run.info.status == "KILLED"

    # The next attempt waits for what holds a core: never two trainings on one.
    client.submit_job(entrypoint="exec sleep 600", submission_id="holder", entrypoint_num_cpus=1)
    wait_for(lambda: cluster.free_cores() == 1, 30, "holding a core")
    third = vit.start("third", *command)
    third.says(rf"submitted job {name}-2")
    third.says("waiting: other work holds 1 of 2 CPUs")
    entrypoint(cluster).kill()
    assert third.ends(60) == 1
    assert f"job {name}-2 died" in third.said
    assert "steps" not in third.said
    last = vit.start("last", *command)
    last.says(f"submitted job {name}-3")
    last.says("waiting: other work holds 1 of 2 CPUs")
    client.stop_job("holder")
    assert last.ends(240) == 0, last.said
    assert int(re.search(r"resumed: attempt \d+ from step (\d+)", last.said)[1]) >= 20  # type: ignore[index]
    assert re.search(r"600 steps in \d+", last.said)

    # One run, every step once, one version.
    (run,) = store.search_runs([run.info.experiment_id])
    assert run.info.status == "FINISHED"
    points = store.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in points] == list(range(1, STEPS + 1))
    (version,) = store.search_model_versions("name = 'shades'")
    assert version.tags["vit.git"] == run.data.tags["vit.git"]
    assert not any((vit.home / "checkpoints" / version.tags["vit.identity"]).iterdir())

    # Both nodes ran the shipped code, and what a job shows of itself is no secret.
    code = re.findall(r"node (\S+) runs (\S+)", client.get_job_logs(f"{name}-3"))
    assert len(code) == 2
    assert {
        Path(place).is_relative_to(cluster.folder / node) for (_, place), node in zip(sorted(code), "ba", strict=True)
    }
    shown = str([client.get_job_info(f"{name}-{attempt}") for attempt in (1, 2, 3)])
    assert TOKEN not in shown
    assert SECRET not in shown
    metadata = client.get_job_info(f"{name}-3").metadata or {}
    assert metadata["identity"] == version.tags["vit.identity"]
    assert (metadata["name"], metadata["run"]) == ("shades vit_tiny_cpu", run.info.run_id)
    tagged = prefect.read_flow_run(UUID(metadata["flow_run"]))
    assert f"{name}-3" in tagged.tags
    assert vit.run(*command).stderr.count("done before") == 1
    assert len(client.list_jobs()) == 4


@flow
def nobody() -> None:
    """A flow whose runs are only spoken of."""


def test_jobs_are_listed_read_and_stopped(cluster: Cluster, vit: Vit, prefect: SyncPrefectClient) -> None:
    over = prefect.create_flow_run(nobody, state=Cancelled())
    alive = prefect.create_flow_run(nobody, state=Running())

    def sleeping(digit: str, flow_run: object) -> str:
        job_id = f"vit-train-{digit * 16}-1"
        metadata = {"name": "a b", "flow_run": str(flow_run)}
        return cluster.client.submit_job(entrypoint="echo hé; exec sleep 600", submission_id=job_id, metadata=metadata)

    orphan, unknown = sleeping("a", over.id), sleeping("b", uuid4())
    wanted, attached = sleeping("c", alive.id), sleeping("d", over.id)
    prefect.update_flow_run(alive.id, tags=[attached])
    wait_for(lambda: "hé" in vit.run("jobs", "--logs", orphan).stdout, 30, "the first word")
    live = {job["id"]: job for job in json.loads(vit.run("jobs", "--json").stdout)}
    assert {job_id: job["flow_state"] for job_id, job in live.items()} == {
        orphan: "Cancelled",
        unknown: None,
        wanted: "Running",
        attached: "Running",
    }
    assert [job_id for job_id, job in live.items() if job["orphaned"]] == [orphan]
    stopped = json.loads(vit.run("jobs", "--stop-orphans", "--json").stdout)
    assert [(job["id"], job["state"]) for job in stopped] == [(orphan, "STOPPED")]
    assert "orphaned" not in vit.run("jobs").stdout

    hook = "from flows.pretrain import pretrain; import json, sys, types; "
    hook += "pretrain.on_cancellation_hooks[0](pretrain, types.SimpleNamespace(**json.loads(sys.argv[1])), None)"
    cancelled = json.dumps({"id": str(alive.id), "tags": [attached]})
    environment = vit.environment
    subprocess.run([sys.executable, "-c", hook, cancelled], cwd=ROOT, env=environment, timeout=120, check=True)
    assert [job["id"] for job in json.loads(vit.run("jobs", "--json").stdout)] == [unknown]

    done = vit.run("jobs", "--stop", unknown)
    assert (done.returncode, done.stdout) == (0, "")
    assert f"job {unknown}: stopped" in done.stderr
    assert vit.run("jobs", "--json").stdout.strip() == "[]"
    assert len(json.loads(vit.run("jobs", "--all", "--json").stdout)) >= 4


def test_checkpoints_that_the_cluster_cannot_write_are_named_before_anything_trains(vit: Vit, shades: str) -> None:
    command = ["pretrain", "vit_tiny_cpu", "--data", shades, *SETTINGS, "--train.seed", "1"]
    done = vit.run(*command, VIT_CHECKPOINTS="/proc/nowhere")
    assert done.returncode == 2
    assert "the cluster cannot write checkpoints" in done.stderr
    assert "set VIT_CHECKPOINTS to a folder that all nodes share" in done.stderr


def test_two_submit_one_attempt(cluster: Cluster, vit: Vit) -> None:
    script = (
        "import sys, os; from tasks.on_ray.jobs import Jobs; "
        "job = Jobs(os.environ['RAY_ADDRESS']).submit('train-eeeeeeeeeeeeeeee', 1, '{}', {'name': sys.argv[1]}); "
        "print(job.id, job.name)"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script, name], cwd=ROOT, env=vit.environment, stdout=subprocess.PIPE, text=True
        )
        for name in ("one", "two")
    ]
    said = {process.communicate(timeout=120)[0] for process in both}
    assert len(said) == 1
    assert re.fullmatch(r"vit-train-e{16}-1 (one|two)\n", said.pop())


def test_a_dropped_connection_is_resumed_without_repeating_a_line(cluster: Cluster, vit: Vit) -> None:
    go = vit.home / "go"
    talk = f"echo ready; until [ -e {go} ]; do sleep 0.1; done; "
    talk += 'for i in $(seq 80); do echo line $i; echo \'@vit {"event": "e", "step": \'$i\'}\'; sleep 0.15; done'
    job_id = cluster.client.submit_job(entrypoint=talk, submission_id=f"vit-train-{'f' * 16}-1", metadata={"name": "n"})
    script = (
        "import os, sys; from tasks.on_ray.follow import follow; from tasks.on_ray.jobs import Jobs; "
        "details = follow(Jobs(os.environ['RAY_ADDRESS']), sys.argv[1], "
        "listener=lambda message: print('step', message['step'], flush=True), "
        "relay=lambda line: print(line, flush=True)); print(details.status.value)"
    )
    with cutting(cluster.address, times=3) as (address, begin):
        follower = vit.launch("follower", "-c", script, job_id, RAY_ADDRESS=address)
        follower.says("ready")
        go.touch()
        follower.says("line 5")
        begin.set()  # every cut is amid the log
        assert follower.ends() == 0, follower.said
    said = [line for line in follower.said.splitlines() if line.startswith(("line", "step"))]
    assert said == [f"{word} {number}" for number in range(1, 81) for word in ("line", "step")]
    assert follower.said.splitlines()[-1] == "SUCCEEDED"


@contextlib.contextmanager
def cutting(address: str, *, times: int) -> Iterator[tuple[str, threading.Event]]:
    """A way to the dashboard that breaks all connections some times, 3 seconds apart, once the event is set."""
    target = int(address.rpartition(":")[2])
    listener = socket.create_server(("127.0.0.1", 0))
    open_now: list[socket.socket] = []
    begin = threading.Event()

    def carry(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near = listener.accept()[0]
                far = socket.create_connection(("127.0.0.1", target))
                open_now.extend((near, far))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=carry, args=pair, daemon=True).start()

    def cut() -> None:
        begin.wait()
        for _ in range(times):
            while open_now:
                end = open_now.pop()
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            time.sleep(3)

    for work in (accept, cut):
        threading.Thread(target=work, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", begin
    finally:
        begin.set()
        listener.close()


@pytest.mark.parametrize(
    ("changes", "code", "sentence"),
    [
        ({"RAY_ADDRESS": "http://127.0.0.1:9"}, 1, "no Ray dashboard answers at http://127.0.0.1:9"),
        ({"RAY_ADDRESS": "127.0.0.1:6379"}, 2, "set RAY_ADDRESS to its address"),
        ({"RAY_AUTH_TOKEN_PATH": os.devnull, "RAY_AUTH_TOKEN": "wrong" * 8}, 2, "refuses the token"),
        ({"RAY_ADDRESS": "http://me:word@127.0.0.1:9"}, 2, "RAY_ADDRESS holds a password"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(vit: Vit, changes: dict[str, str], code: int, sentence: str) -> None:
    done = vit.run("jobs", **changes)
    assert done.returncode == code
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "me:word" not in done.stderr
