"""What a newcomer sees while things happen: lines and progress on the terminal, or in the log of a flow run.

Under the `vit` command lines go to the terminal and, inside a flow run, to its log as well; in a Prefect worker there
is only the log.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger
from rich.console import Console
from rich.text import Text

from tasks.progress import Progress, Track
from tasks.settings import Settings


def tell(settings: Settings, line: str) -> None:
    """Say a line of the story."""
    _log(line)
    if settings.console:
        console = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
        console.print(Text.assemble(("▸ ", "cyan"), line), soft_wrap=True)


def note(line: str) -> None:
    """A line for the log of the flow run alone: what a job says beside its story."""
    _log(line)


@contextlib.contextmanager
def track(settings: Settings, label: str, total: int | None, unit: str) -> Iterator[Track]:
    """Progress with rate and remaining time of anything longer than two seconds."""
    progress = Progress() if settings.console else Progress(emit=_log)
    with progress.track(label, total, unit) as shown:
        yield shown


def _log(line: str) -> None:
    if TaskRunContext.get() is not None or FlowRunContext.get() is not None:
        get_run_logger().info(line)
    else:
        logging.getLogger(__name__).debug(line)
