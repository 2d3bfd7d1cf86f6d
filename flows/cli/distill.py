"""`vit distill`: train a recipe with a teacher to follow."""

from __future__ import annotations

from dataclasses import dataclass

from flows.cli import results, training
from flows.cli.session import Session

ABOUT = "Train a recipe with a distillation token that follows a teacher, and register the model."
EXAMPLES = (
    "vit distill deit_s16 --data data/birds --teacher models:/birds-cnn@champion",
    "vit distill deit_tiny_cpu --data data/cifar10 --teacher torchvision:resnet50 --objective.mode soft",
    "vit distill deit_ti16 --data data/birds --teacher models:/birds-cnn/1 --store-teacher",
)


@dataclass(frozen=True, kw_only=True)
class Options(training.Options):
    """The arguments that are not fields of a recipe."""

    teacher: str
    """The model to follow: models:/NAME/VERSION, models:/NAME@ALIAS, timm:NAME, hf:ORG/NAME,
    torchvision:NAME, import:MODULE:FUNCTION (a function of your own), or a folder."""
    store_teacher: bool = False
    """Ask the teacher about every view before the training and keep its answers beside the dataset: further students of
    the same data configuration, batch size and seed replay them."""
    teacher_top: int = 10
    """How many logits of a view --store-teacher keeps: the largest, 4 bytes each."""


def run(argv: list[str], session: Session) -> int:
    """Run the verb; returns the exit code."""
    request = training.read("distill", Options, argv, about=ABOUT, examples=EXAMPLES)
    if request is None:
        return 0
    session.start()
    from flows.distill import distill
    from flows.request import plan

    options = request.options
    top = options.teacher_top if options.store_teacher else None
    arguments = {**request.arguments(), "teacher": options.teacher, "teacher_top": top}
    stages = plan(**arguments)  # a wrong request is answered here, before any server starts
    if options.dry_run:
        return results.show_plan(stages, json=options.json)
    return results.show_trained(distill(**arguments), json=options.json)
