"""A configuration's fields as typed flags: each with its help and the configuration's own value as the default.

tyro would read the pydantic models directly, but then a union becomes a subcommand and a wrong value a pydantic
traceback in a box. So the models are mirrored as plain dataclasses, of the union members the recipe chose, and what was
changed is validated by the models afterwards, whose errors are sentences.
"""

from __future__ import annotations

import dataclasses
import inspect
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from vitcore.recipe import Config


def mirror(config: Config, *, hide: frozenset[str] = frozenset()) -> type[Any]:
    """A dataclass with the fields of `config`, its values as defaults.

    Left out are the fields in `hide`, those with only one possible value (`kind`, `schema_version`), and lists of
    configurations (`views`), which are written in a recipe and not on a line.
    """
    members: list[Any] = []
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if name in hide or _fixed(info.annotation) or _is_list(info.annotation):
            continue
        if isinstance(value, Config):
            nested = mirror(value)
            about = inspect.cleandoc(type(value).__doc__ or "").partition("\n\n")[0]
            members.append((name, Annotated[nested, tyro.conf.arg(help=about)], _default(nested())))
        else:
            members.append((name, _typed(info.annotation, info.description or ""), _default(value)))
    return dataclasses.make_dataclass(type(config).__name__, members, frozen=True)


def changes(config: Config, edited: Any) -> dict[str, Any]:
    """Dotted field → JSON value where an instance of `config`'s mirror differs from `config`."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(edited):
        before, after = getattr(config, field.name), getattr(edited, field.name)
        if isinstance(before, Config):
            found.update({f"{field.name}.{name}": value for name, value in changes(before, after).items()})
        elif before != after:
            found[field.name] = list(after) if isinstance(after, tuple) else after
    return found


def _typed(annotation: Any, about: str) -> Any:
    """The annotation tyro reads: `none` is a value of what is optional, spelt as people spell it."""
    inner = [member for member in get_args(annotation) if member is not NoneType]
    if get_origin(annotation) not in (Union, UnionType) or len(inner) != 1:
        return Annotated[annotation, tyro.conf.arg(help=about)]
    kind = inner[0]
    words = _words(kind)
    if words is None and kind not in (int, float, str):
        return Annotated[annotation, tyro.conf.arg(help=about)]

    def read(given: list[str]) -> Any:
        if given[0].lower() == "none":
            return None
        return kind(given[0]) if words is None else words[given[0]]

    def say(value: Any) -> str:
        return "none" if value is None else str(value) if words is None else str(value).lower()

    spec = PrimitiveConstructorSpec[Any](
        nargs=1,
        metavar=f"{kind.__name__.upper()}|none" if words is None else f"{{{','.join([*words, 'none'])}}}",
        choices=None if words is None else (*words, "none"),
        instance_from_str=read,
        is_instance=lambda value: (
            value is None or (isinstance(value, kind) if words is None else value in words.values())
        ),
        str_from_instance=lambda value: [say(value)],
    )
    return Annotated[annotation, spec, tyro.conf.arg(help=about)]


def _words(kind: Any) -> dict[str, Any] | None:
    """The values of a type that has a few, by the word that says each; None of a type that has many."""
    if kind is bool:
        return {"true": True, "false": False}
    return {value: value for value in get_args(kind)} if get_origin(kind) is Literal else None


def _fixed(annotation: Any) -> bool:
    return get_origin(annotation) is Literal and len(get_args(annotation)) == 1


def _is_list(annotation: Any) -> bool:
    """Whether a field holds any number of configurations."""
    items = get_args(annotation) if get_origin(annotation) is tuple else ()
    return any(isinstance(item, type) and issubclass(item, Config) for item in items)


def _default(value: Any) -> Any:
    return dataclasses.field(default=value)
