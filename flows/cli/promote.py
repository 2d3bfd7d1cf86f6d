"""`vit promote`: move the alias `champion`, if the gate passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from flows.cli import console, results
from flows.cli.arguments import parse
from flows.cli.session import Session

if TYPE_CHECKING:
    from tasks.settings import Settings


@dataclass(frozen=True)
class Arguments:
    """The arguments of the verb."""

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """The candidate, models:/NAME/VERSION; with --rollback the registered name."""
    data: str | None = None
    """URL of the dataset that decides; default: the one the model was trained on."""
    split: str = "val"
    """Split that decides; a test split that decides is no longer a test."""
    metric: Literal["top1", "balanced_accuracy", "auroc"] = "balanced_accuracy"
    """What the candidate and the champion are compared by."""
    margin: float = 0.01
    """How much worse than the champion the candidate must provably not be."""
    rollback: bool = False
    """Give the alias back to the champion before this one."""
    json: bool = False
    """Print the decision as JSON."""


def run(argv: list[str], session: Session) -> int:
    """Run the verb; returns the exit code: 1 when the candidate is not promoted."""
    given = parse(
        Arguments,
        argv,
        verb="promote",
        about="Make a model version the champion of its name, if it passes the gate on the validation split.",
        examples=(
            "vit promote models:/birds/7",
            "vit promote models:/birds/7 --data data/birds --metric auroc",
            "vit promote birds --rollback",
        ),
    )
    settings = session.start()
    return _roll_back(given) if given.rollback else _promote(given, settings)


def _promote(given: Arguments, settings: Settings) -> int:
    from flows.promote import promote, requested

    requested(given.model, given.data, given.split, settings)  # a wrong request is answered before a server starts
    decision, champion = promote(
        model=given.model, data=given.data, split=given.split, metric=given.metric, margin=given.margin
    )
    if given.json:
        console.as_json({**results.plain(decision), "champion": champion})
        return 0 if decision.passed else 1
    if decision.passed:
        console.done(f"promoted: the champion is {champion}")
    else:
        console.fail(f"not promoted: {f'the champion remains {champion}' if champion else 'there is no champion'}")
    for reason in decision.reasons:
        console.write(f"  {reason}")
    return 0 if decision.passed else 1


def _roll_back(given: Arguments) -> int:
    from flows.promote import rollback

    version = rollback(name=given.model.removeprefix("models:/").partition("/")[0].partition("@")[0])
    if given.json:
        console.as_json(results.plain(version))
    else:
        console.done(f"the champion is {version.uri} again")
    return 0
