"""What a killed command may leave behind: Prefect's temporary server, which does not notice that its parent is gone."""

from __future__ import annotations

import contextlib
import os

import psutil

from tasks.settings import Settings

_SERVER = "prefect.server.api.server:create_app"
_REAPERS = frozenset({"systemd", "init", "tini", "launchd"})
"""Processes besides number 1 that take over the children of the dead."""


def stop_orphaned_servers(settings: Settings) -> None:
    """Stop temporary servers over this home whose command was killed; those of running commands are left alone."""
    home = str(settings.home / "prefect")
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            server = _SERVER in (process.info["cmdline"] or ()) and process.environ().get("PREFECT_HOME") == home
            if server and _orphaned(process):
                process.terminate()


def _orphaned(process: psutil.Process) -> bool:
    parent = process.parent()
    return parent is None or (parent.pid == 1 and os.getpid() != 1) or parent.name() in _REAPERS
