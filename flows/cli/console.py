"""The look of the terminal: lines of the story, tables, a summary, and one sentence when something is wrong.

What a script may read (tables, JSON) goes to stdout; the story and errors go to stderr. Colour is rich's business: none
without a terminal or with ``NO_COLOR``. Text is never read as markup, since paths and class names hold brackets.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 200
"""Columns of a table that does not go to a terminal: wide enough that `grep` finds a row on one line."""


def say(text: str) -> None:
    """A line of the story: what happens now."""
    _console(sys.stderr).print(Text.assemble(("▸ ", "cyan"), text), soft_wrap=True)


def done(text: str) -> None:
    """A line of the story: what has been finished."""
    _console(sys.stderr).print(Text.assemble(("✓ ", "green"), text), soft_wrap=True)


def fail(sentence: str) -> None:
    """The one sentence of a command that ends badly."""
    line = " ".join(sentence.split())
    _console(sys.stderr).print(Text.assemble(("vit: ", "bold red"), line), soft_wrap=True)


def write(text: str) -> None:
    """A line of the answer, on stdout and as it is."""
    _console(sys.stdout).print(Text(text), soft_wrap=True)


def heading(text: str) -> None:
    """A title above what follows, on stdout."""
    _console(sys.stdout).print(Text(text, style="bold"), soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Print rows under their columns; numbers are right-aligned and an empty cell is shown as a dash."""
    listed = [[_cell(value) for value in row] for row in rows]
    view = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        numeric = bool(listed) and all(_numeric(row[index]) for row in listed)
        view.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        view.add_row(*(Text(cell) for cell in row))
    _console(sys.stdout).print(view)


def grouped(columns: Sequence[str], groups: Mapping[str, Iterable[Sequence[object]]]) -> None:
    """Print one table of several groups of rows, each under its heading; a group without rows is left out."""
    view = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        view.add_column(column, overflow="fold")
    for heading, rows in groups.items():
        listed = [[Text(_cell(value)) for value in row] for row in rows]
        if listed:
            view.add_row(Text(heading, style="bold"))
        for number, row in enumerate(listed, start=1):
            view.add_row(Text("  ") + row[0], *row[1:], end_section=number == len(listed))
    _console(sys.stdout).print(view)


def fields(pairs: Mapping[str, object]) -> None:
    """Print names and values below each other."""
    view = Table.grid(padding=(0, 2))
    for name, value in pairs.items():
        view.add_row(Text(name, style="cyan"), Text(_cell(value)))
    _console(sys.stdout).print(view)


def as_json(value: Any) -> None:
    """Print a JSON value for another program, without colour or wrapping."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _console(stream: IO[str]) -> Console:
    """A console on what the stream is now (tests and redirections replace it)."""
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _numeric(cell: str) -> bool:
    return cell == "-" or cell.replace(",", "").replace(".", "").replace("%", "").strip().isdigit()
