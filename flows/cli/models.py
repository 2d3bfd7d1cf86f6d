"""`vit models`: what is registered, where it comes from, and how two versions differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from flows.cli import console, results
from flows.cli.arguments import parse
from flows.cli.session import Session
from vitcore.errors import RequestError

if TYPE_CHECKING:
    from tasks.on_mlflow.lineage import Ancestor
    from tasks.on_mlflow.registry import ModelVersion


@dataclass(frozen=True)
class Arguments:
    """The arguments of the verb."""

    ref: Annotated[Positional[str | None], arg(metavar="REF")] = None
    """A registered name, to list its versions, or models:/NAME/VERSION, models:/NAME@ALIAS; default: list all."""
    lineage: bool = False
    """Show the models and datasets that the version comes from."""
    compare: str | None = None
    """Another version, to show beside this one what differs."""
    json: bool = False
    """Print JSON."""


def run(argv: list[str], session: Session) -> int:
    """Run the verb; returns the exit code."""
    given = parse(
        Arguments,
        argv,
        verb="models",
        about="Registered models: all of them, the versions of one, one version, its lineage, or two compared.",
        examples=(
            "vit models",
            "vit models birds",
            "vit models models:/birds@champion --lineage",
            "vit models models:/birds/7 --compare models:/birds@champion",
        ),
    )
    if given.ref is None:
        if given.lineage or given.compare is not None:
            raise RequestError("name the version first: vit models models:/NAME/VERSION --lineage")
        return _all(session, given.json)
    if given.lineage:
        return _lineage(session, _reference(given.ref), given.json)
    if given.compare is not None:
        return _compare(session, _reference(given.ref), _reference(given.compare), given.json)
    if given.ref.startswith("models:/"):
        return _one(session, given.ref, given.json)
    return _versions(session, given.ref, given.json)


def _all(session: Session, json: bool) -> int:
    tracking = session.start().tracking_uri
    from tasks.on_mlflow import registry

    models = registry.list_models(tracking)
    if json:
        console.as_json(results.plain(models))
        return 0
    if not models:
        console.say("no model is registered yet: `vit pretrain RECIPE --data URL` registers one")
        return 0
    rows = [
        (
            model.name,
            len(model.versions),
            model.champion.version if model.champion else None,
            f"{model.versions[0].created:%Y-%m-%d %H:%M}",
            _subject(model.champion or model.versions[0]),
        )
        for model in models
    ]
    console.table(("model", "versions", "champion", "newest", "what"), rows)
    return 0


def _versions(session: Session, name: str, json: bool) -> int:
    tracking = session.start().tracking_uri
    from tasks.on_mlflow import registry

    versions = registry.versions(tracking, name)
    if not versions:
        registry.resolve(tracking, f"models:/{name}/latest")  # raises, and says which models there are
    if json:
        console.as_json(results.plain(versions))
        return 0
    console.table(
        ("version", "aliases", "created", "dataset", "what"),
        [
            (
                version.version,
                ", ".join(version.aliases),
                f"{version.created:%Y-%m-%d %H:%M}",
                version.tags.get(registry.DATASET),
                _subject(version),
            )
            for version in versions
        ],
        title=name,
    )
    return 0


def _one(session: Session, ref: str, json: bool) -> int:
    tracking = session.start().tracking_uri
    from tasks.on_mlflow import registry

    version = registry.resolve(tracking, ref)
    if json:
        console.as_json({"uri": version.uri, **results.plain(version)})
        return 0
    console.heading(version.uri)
    console.fields(
        {
            "aliases": ", ".join(version.aliases),
            "created": f"{version.created:%Y-%m-%d %H:%M}",
            "run": version.run_id,
            "weights": version.digest,
            **version.tags,
        }
    )
    if version.description:
        console.write(f"\n{version.description}")
    return 0


def _lineage(session: Session, ref: str, json: bool) -> int:
    tracking = session.start().tracking_uri
    from tasks.on_mlflow.lineage import lineage

    root = lineage(tracking, ref)
    if json:
        console.as_json(results.plain(root))
        return 0

    def show(node: Ancestor, depth: int) -> None:
        role = "" if node.role == "self" else f"{node.role} "
        data = f"   trained on {node.dataset}" if node.dataset else ""
        console.write(f"{'   ' * depth}{'└─ ' if depth else ''}{role}{node.ref}{data}")
        for ancestor in node.ancestors:
            show(ancestor, depth + 1)

    show(root, 0)
    return 0


def _compare(session: Session, ref: str, other: str, json: bool) -> int:
    """What differs between two versions: tags, parameters and the last value of every metric."""
    tracking = session.start().tracking_uri
    from tasks.on_mlflow import registry, runs

    def known(which: str) -> tuple[str, dict[str, Any]]:
        version = registry.resolve(tracking, which)
        run = runs.get(tracking, version.run_id)
        return version.uri, {**version.tags, **run.params, **run.metrics, "aliases": ", ".join(version.aliases)}

    (first, left), (second, right) = known(ref), known(other)
    differing = {name: (left.get(name), right.get(name)) for name in {**left, **right}}
    differing = {name: pair for name, pair in differing.items() if pair[0] != pair[1]}
    if json:
        console.as_json({name: {first: pair[0], second: pair[1]} for name, pair in differing.items()})
        return 0
    console.table(("what differs", first, second), [(name, *pair) for name, pair in differing.items()])
    return 0


def _reference(ref: str) -> str:
    """A bare name stands for its newest version."""
    return ref if ref.startswith("models:/") else f"models:/{ref}/latest"


def _subject(version: ModelVersion) -> str:
    return version.tags.get("vit.recipe") or version.description.partition("\n")[0][:60]
