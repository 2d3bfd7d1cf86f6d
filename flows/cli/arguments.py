"""A verb's arguments: tyro reads them into a dataclass, and what is wrong with them becomes one sentence."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro
from tyro import _errors as tyro_errors  # private, and the only way to say a parse error in our own words

from vitcore.errors import RequestError

T = TypeVar("T")

_NOUNS = {"INT": "a whole number", "FLOAT": "a number", "STR": "a text", "PATH": "a path"}


def parse(request: type[T], argv: Sequence[str], *, verb: str, about: str, examples: Sequence[str]) -> T:
    """Read `argv` into a `request`.

    Args:
        request: dataclass whose fields are the arguments; attribute docstrings are their help.
        argv: what follows the verb.
        verb: words after ``vit`` in the usage line.
        about: first paragraph of the help.
        examples: command lines shown in the help.
    Raises:
        RequestError: an unknown, missing or wrong argument.
        SystemExit: with code 0, after the help was printed.
    """

    def explain(event: tyro_errors.ParseErrorEvent) -> None:
        sentence = _sentence(event, request)
        if sentence is not None:
            raise RequestError(f"{sentence} (see `vit {verb} --help`)")

    lines = "\n".join(f"  {example}" for example in examples)
    with tyro_errors.on_parse_error(explain):
        return tyro.cli(
            request,
            prog=f"vit {verb}",
            description=f"{about}\n\nexamples:\n{lines}",
            args=list(argv),
            config=(tyro.conf.FlagCreatePairsOff,),
        )


def flags(request: type[Any], prefix: str = "") -> Iterator[str]:
    """Every flag of a request, such as ``--train.batch-size``; positional arguments appear as flags too."""
    hints = get_type_hints(request, include_extras=True)
    for field in dataclasses.fields(request):
        hint = hints[field.name]
        kind, extras = (get_args(hint)[0], get_args(hint)[1:]) if get_origin(hint) is Annotated else (hint, ())
        name = next((extra.name for extra in extras if getattr(extra, "name", None) is not None), field.name)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from flags(kind, f"{prefix}{name}." if name else prefix)
        else:
            yield f"--{prefix}{name}".replace("_", "-")


def _sentence(event: tyro_errors.ParseErrorEvent, request: type[Any]) -> str | None:
    """What is wrong, without an end; None leaves an event unknown here to tyro's own words."""
    match event:
        case tyro_errors.UnrecognizedArgs(tokens=tokens):
            return _unknown(tokens, request)
        case tyro_errors.MissingArgs(missing_arguments=missing, unrecognized_tokens=tokens):
            if tokens:
                return _unknown(tokens, request)
            return f"missing {', '.join(_called(item.arg) for item in missing)}"
        case tyro_errors.BadValue(argument=argument):
            count = argument.lowered.nargs
            return (
                f"{_called(argument)} needs {f'{count} values' if isinstance(count, int) and count > 1 else 'a value'}"
            )
        case tyro_errors.InvalidChoice(argument=argument, value=value, choices=choices):
            near = difflib.get_close_matches(value, choices, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"{_called(argument)} takes one of {', '.join(choices)}, not {value!r}{hint}"
        case tyro_errors.InstantiationFailure(message=message, argument=argument):
            return _unfit(message, argument)
        case _:
            return None


def _unknown(tokens: Sequence[str], request: type[Any]) -> str:
    """The first unknown flag (its value is unknown too, and says nothing) and the nearest known one."""
    token = next((token for token in tokens if token.startswith("-")), tokens[0])
    if not token.startswith("-"):
        return f"unexpected argument {token!r}"
    name = token.partition("=")[0]
    known = list(flags(request))
    # First a field without its group: --batch-size for --train.batch-size.
    near = [flag for flag in known if flag.endswith(f".{name.lstrip('-').replace('_', '-')}")]
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"there is no option {name}" + (f"; did you mean {' or '.join(near)}?" if near else "")


def _unfit(message: str, argument: Any) -> str:
    lines = [line for line in message.splitlines() if line]
    if argument is None:
        return lines[0] if lines else "a value does not fit"
    words = str(argument.lowered.metavar).split()
    wanted = " and ".join(" or ".join(_NOUNS.get(part, part) for part in word.split("|")) for word in words)
    value = re.search(r"'([^']*)'$", message)  # Python's own conversions end with the value they did not take
    return f"{_called(argument)} takes {wanted}" + (f", not {value[1]!r}" if value else "")


def _called(argument: Any) -> str:
    """A positional argument by its placeholder, an option by its flag."""
    return str(argument.lowered.metavar if argument.is_positional() else argument.lowered.name_or_flags[-1])
