"""Where things are: the only file that reads the environment, and the one that sets it for Prefect, Ray and MLflow.

| variable | meaning | default |
|---|---|---|
| `VIT_HOME` | state of a laptop run: Prefect's database, MLflow's, checkpoints, models | `./.vit` |
| `VIT_TRACKING` | MLflow tracking server | SQLite under `VIT_HOME` |
| `VIT_API` | Prefect API | a temporary server over SQLite under `VIT_HOME` |
| `VIT_CHECKPOINTS` | URL of the folder for checkpoints | `VIT_HOME`/checkpoints |
| `RAY_ADDRESS` | a running Ray cluster: `host:6379` is joined, `http://host:8265` is sent jobs | one of this machine |

A user's own Prefect profile and `MLFLOW_TRACKING_URI` are not looked at. Credentials stay in the standard variables of
each store and are read by its client alone.
"""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

_QUIET = {
    # Ray: no dashboard metrics, no usage report, quick detection of a finished training
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    # Prefect
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # 4 s on an idle machine
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # MLflow: untrusted pickles are never loaded
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Endpoints and folders of this process."""

    home: Path
    tracking_uri: str
    api: str | None
    checkpoints: str
    ray_address: str | None
    verbose: bool
    console: bool
    """Whether a person watches a terminal (the `vit` command), rather than the log of a flow run."""

    @property
    def jobs_address(self) -> str | None:
        """Dashboard of a cluster that is sent jobs, rather than joined; None where `ray_address` names none."""
        address = self.ray_address
        return address.rstrip("/") if address and address.startswith(("http://", "https://")) else None

    def worker_environment(self) -> dict[str, str]:
        """Variables that a Ray worker on any node needs to report to the same places."""
        return {
            **_QUIET,
            "VIT_HOME": str(self.home),
            "VIT_TRACKING": self.tracking_uri,
            "VIT_CHECKPOINTS": self.checkpoints,
        }


def job_environment() -> dict[str, str]:
    """Variables of a job on a cluster. Endpoints are in its request; the nodes have the credentials of the stores."""
    return {
        **_QUIET,
        "RAY_COLOR_PREFIX": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "20",  # then a stopped job is killed: time to close its run
    }


def load_in_job(tracking_uri: str, checkpoints: str) -> Settings:
    """The settings of a job: its endpoints, and a home of the node's own, in `VIT_HOME` or the temporary folder."""
    os.environ.setdefault("VIT_HOME", str(Path(tempfile.gettempdir()) / f"vit-{os.getuid()}"))
    return replace(load(), tracking_uri=tracking_uri, checkpoints=checkpoints, console=False)


def load() -> Settings:
    """The settings the environment gives, with embedded defaults; what keeps the frameworks quiet and safe is set."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    home = Path(os.environ.get("VIT_HOME", ".vit")).expanduser().absolute()
    return Settings(
        home=home,
        tracking_uri=os.environ.get("VIT_TRACKING") or f"sqlite:///{home / 'mlflow.db'}",
        api=os.environ.get("VIT_API") or None,
        checkpoints=os.environ.get("VIT_CHECKPOINTS") or str(home / "checkpoints"),
        ray_address=os.environ.get("RAY_ADDRESS") or None,
        verbose=os.environ.get("VIT_VERBOSE") == "1",
        console=os.environ.get("VIT_CONSOLE") == "1",
    )


def prepare(tracking: str | None = None, api: str | None = None, verbose: bool = False) -> Settings:
    """Set the environment for a command. To be called before Prefect, Ray or MLflow are imported.

    Args:
        tracking: MLflow server to use instead of the default.
        api: Prefect API to use instead of the temporary server.
        verbose: let the frameworks' own log lines through.
    """
    if tracking is not None:
        os.environ["VIT_TRACKING"] = tracking
    if api is not None:
        os.environ["VIT_API"] = api
    if verbose:
        os.environ["VIT_VERBOSE"] = "1"
    os.environ["VIT_CONSOLE"] = "1"
    settings = load()
    settings.home.mkdir(parents=True, exist_ok=True)
    os.environ["VIT_HOME"] = str(settings.home)
    os.environ["PREFECT_HOME"] = str(settings.home / "prefect")
    os.environ["PREFECT_PROFILES_PATH"] = str(settings.home / "prefect" / "profiles.toml")
    if settings.api is None:
        os.environ.pop("PREFECT_API_URL", None)
        os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "true"
    else:
        os.environ["PREFECT_API_URL"] = settings.api
    if not settings.verbose:  # run logs still reach Prefect's API; the terminal shows the story alone
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    if not settings.verbose:
        for name in ("alembic", "mlflow", "ray"):
            logging.getLogger(name).setLevel(logging.ERROR)
    return settings
