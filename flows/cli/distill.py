"""`vit distill`: train a recipe with a teacher to follow."""

from __future__ import annotations

from dataclasses import dataclass

from flows.cli import results, training
from flows.cli.session import Session

ABOUT = "Train a recipe with a distillation token that follows a teacher, and register the model."
EXAMPLES = (
    "vit distill deit_s16 --data data/birds --teacher models:/birds-cnn@champion",
    "vit distill deit_tiny_cpu --data data/cifar10 --teacher torchvision:resnet50 --objective.mode soft",
)


@dataclass(frozen=True, kw_only=True)
class Options(training.Options):
    """The arguments that are not fields of a recipe."""

    teacher: str
    """The model to follow: models:/NAME/VERSION, models:/NAME@ALIAS, timm:NAME, torchvision:NAME, or a folder."""


def run(argv: list[str], session: Session) -> int:
    """Run the verb; returns the exit code."""
    request = training.read("distill", Options, argv, about=ABOUT, examples=EXAMPLES)
    if request is None:
        return 0
    session.start()
    from flows.distill import distill
    from flows.request import plan

    options = request.options
    arguments = {**request.arguments(), "teacher": options.teacher}
    stages = plan(**arguments)  # a wrong request is answered here, before any server starts
    if options.dry_run:
        return results.show_plan(stages, json=options.json)
    return results.show_trained(distill(**arguments), json=options.json)
