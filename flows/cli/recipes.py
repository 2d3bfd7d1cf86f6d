"""`vit recipes`: what can be trained, and where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional, arg

from flows.cli import console
from flows.cli.arguments import parse
from flows.cli.session import Session
from flows.cli.training import verb_of
from vitcore.recipe import flatten
from vitcore.recipes import CATALOGUE, FAMILIES, find, header, parameters


@dataclass(frozen=True)
class Arguments:
    """The arguments of the verb."""

    name: Annotated[Positional[str | None], arg(metavar="RECIPE")] = None
    """A recipe, to print its whole header and every field; default: list them all, by family."""
    json: bool = False
    """Print JSON."""


def run(argv: list[str], session: Session) -> int:
    """Run the verb; returns the exit code."""
    given = parse(
        Arguments,
        argv,
        verb="recipes",
        about="What can be trained. Hours and numbers are those of the papers, never measured here.",
        examples=("vit recipes", "vit recipes deit_s16"),
    )
    if given.name is not None:
        return _one(given.name, json=given.json)
    if given.json:
        console.as_json([_row(name) for name in CATALOGUE])
        return 0
    shown = ("recipe", "verb", "parameters", "hours", "number", "paper")
    console.grouped(
        shown,
        {
            family: [[_short(row[key]) for key in shown] for row in (_row(recipe.__name__) for recipe in recipes)]
            for family, recipes in FAMILIES.items()
        },
    )
    return 0


def _row(name: str) -> dict[str, Any]:
    recipe, head = find(name), header(name)
    return {
        "recipe": name,
        "family": next(family for family, recipes in FAMILIES.items() if CATALOGUE[name] in recipes),
        "verb": verb_of(recipe),
        "title": head.title,
        "parameters": parameters(name),
        "hours": head.hours,
        "number": head.number,
        "hardware": head.hardware,
        "paper": head.paper,
    }


def _short(value: Any) -> Any:
    """Parameters in millions; of a header's line, the fact that stands before its explanation."""
    if isinstance(value, int):
        return f"{value / 1e6:.1f} M"
    return value.partition(";")[0] if isinstance(value, str) else value


def _one(name: str, *, json: bool) -> int:
    recipe, head = find(name), header(name)
    if json:
        console.as_json({**_row(name), "command": head.command, "notes": head.notes, "fields": flatten(recipe)})
        return 0
    console.heading(f"{name}: {head.title}")
    about = {"paper": head.paper, "command": head.command, "hardware": head.hardware, "hours": head.hours}
    console.fields({**about, "number": head.number, "parameters": parameters(name)})
    if head.notes:
        console.write(f"\n{head.notes}")
    console.heading("\nfields")
    console.fields({field: _field(value) for field, value in _leaves(flatten(recipe)) if field != "name"})
    return 0


def _leaves(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every field with its value; those of a list of configurations by their place in it."""
    for field, value in fields.items():
        if isinstance(value, dict):
            yield from _leaves({f"{field}.{name}": inner for name, inner in value.items()})
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            yield from _leaves({f"{field}.{place}": item for place, item in enumerate(value)})
        else:
            yield field, value


def _field(value: Any) -> Any:
    """A field as its flag would be written."""
    if isinstance(value, list):
        return " ".join(f"{item:g}" for item in value)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
