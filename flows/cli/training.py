"""What `pretrain`, `distill`, `finetune` and `plan` share: a recipe's name, every field of it as a flag, and how it is
run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro

from flows.cli import console
from flows.cli.arguments import parse
from flows.cli.fields import changes, mirror
from vitcore.errors import RequestError
from vitcore.recipe import Compute, DistillConfig, Recipe, apply_overrides
from vitcore.recipes import FAMILIES, find, header

Verb = Literal["pretrain", "distill", "finetune"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The arguments of every verb that takes a recipe."""

    data: tyro.conf.UseAppendAction[tuple[str, ...]]
    """URL of the dataset: a folder written by `vit ingest`, here or in an object store. Several, each behind its own
    --data, are mixed by the weights of --data.mixture; the first one is validated on."""
    json: bool = False
    """Print the result as JSON."""


@dataclass(frozen=True, kw_only=True)
class Options(Asked):
    """The arguments of a training that are not fields of a recipe."""

    name: str | None = None
    """Name the model is registered under; default: made from the dataset and the recipe."""
    fresh: bool = False
    """Repeat the training even if its product exists."""
    dry_run: bool = False
    """Say what would run and why, and run nothing."""
    overfit_one_batch: bool = False
    """Learn one batch by heart and register nothing: a quick proof that model, loss and data fit together."""


O_co = TypeVar("O_co", bound=Asked, covariant=True)


@dataclass(frozen=True)
class Request(Generic[O_co]):
    """A recipe's name, what differs from it, and how to run it."""

    recipe: str
    overrides: dict[str, Any]
    compute: Compute
    options: O_co

    def arguments(self: Request[Options]) -> dict[str, Any]:
        """The keyword arguments that every training flow takes."""
        return {
            "recipe": self.recipe,
            "data": self.options.data[0],
            "mixture": list(self.options.data[1:]),
            "overrides": self.overrides,
            "compute": self.compute,
            "name": self.options.name,
            "fresh": self.options.fresh,
            "overfit_one_batch": self.options.overfit_one_batch,
        }


def read(
    verb: Verb | Literal["plan"], options: type[O_co], argv: Sequence[str], *, about: str, examples: Sequence[str]
) -> Request[O_co] | None:
    """Read a verb's arguments; None after the help that lists its recipes was printed. `plan` takes all of them.

    Raises:
        RequestError: no recipe, an unknown one, one for another verb, or a field that does not fit.
    """
    if argv and argv[0] in ("-h", "--help"):
        _list_recipes(verb, about, examples)
        return None
    if not argv or argv[0].startswith("-"):
        raise RequestError(f"name the recipe first: vit {verb} RECIPE …; `vit recipes` lists them")
    recipe = find(argv[0])
    if verb not in ("plan", verb_of(recipe)):
        raise RequestError(f"{recipe.name} is a recipe for another verb: {header(recipe.name).command}")
    fields = mirror(recipe, hide=frozenset({"name"}))
    compute_fields = mirror(Compute())
    request: Any = dataclasses.make_dataclass(
        "Training",
        [
            ("options", Annotated[options, tyro.conf.arg(name="")]),
            ("recipe", Annotated[fields, tyro.conf.arg(name="")], dataclasses.field(default=fields())),
            ("compute", compute_fields, dataclasses.field(default=compute_fields())),
        ],
    )
    title = header(recipe.name).title
    given = parse(request, argv[1:], verb=f"{verb} {recipe.name}", about=f"{about}\n\n{title}", examples=examples)
    if not given.options.data:  # which tyro lets be none, where it may be several
        raise RequestError(f"missing --data (see `vit {verb} {recipe.name} --help`)")
    overrides = changes(recipe, given.recipe)
    apply_overrides(recipe, overrides)
    try:
        compute = apply_overrides(Compute(), changes(Compute(), given.compute))
    except RequestError as error:
        raise RequestError(f"compute.{error}") from None
    return Request(recipe.name, overrides, compute, given.options)


def verb_of(recipe: Recipe) -> Verb:
    """The verb that runs a recipe: one that needs a parent (and perhaps a teacher), one that needs a teacher alone, or
    neither.
    """
    if recipe.needs_parent:
        return "finetune"
    return "distill" if isinstance(recipe.objective, DistillConfig) else "pretrain"


def _list_recipes(verb: Verb | Literal["plan"], about: str, examples: Sequence[str]) -> None:
    console.write(f"usage: vit {verb} RECIPE [OPTIONS]\n\n{about}\n\nexamples:")
    for example in examples:
        console.write(f"  {example}")
    console.write("\nrecipes (their fields are the options: vit VERB RECIPE --help):")
    console.grouped(("recipe", "what"), {family: _of_verb(verb, family) for family in FAMILIES})


def _of_verb(verb: Verb | Literal["plan"], family: str) -> list[tuple[str, str]]:
    """Name and title of the recipes of a family that a verb runs."""
    names = [recipe.__name__ for recipe in FAMILIES[family] if verb in ("plan", verb_of(recipe()))]
    return [(name, header(name).title) for name in names]
