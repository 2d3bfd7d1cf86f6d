"""`vit finetune`: go on from a trained model."""

from __future__ import annotations

from dataclasses import dataclass

from flows.cli import results, training
from flows.cli.session import Session

ABOUT = "Go on from a trained model, on one's own photographs or at a higher resolution, and register the result."
EXAMPLES = (
    "vit finetune finetune_224 --model timm:vit_small_patch16_224 --data data/birds",
    "vit finetune finetune_384 --model models:/birds@champion --data data/birds",
    "vit finetune lit_b16 --model timm:vit_base_patch16_224.augreg_in21k --data data/captioned",
)


@dataclass(frozen=True, kw_only=True)
class Options(training.Options):
    """The arguments that are not fields of a recipe."""

    model: str
    """The model to start from: models:/NAME/VERSION, models:/NAME@ALIAS, timm:NAME, hf:ORG/NAME, open_clip:ARCH/TAG,
    torchvision:NAME, or a folder."""
    teacher: str | None = None
    """The model to follow, named the same way; for recipes that go on distilling."""


def run(argv: list[str], session: Session) -> int:
    """Run the verb; returns the exit code."""
    request = training.read("finetune", Options, argv, about=ABOUT, examples=EXAMPLES)
    if request is None:
        return 0
    session.start()
    from flows.finetune import finetune
    from flows.request import plan

    options = request.options
    arguments = {**request.arguments(), "model": options.model, "teacher": options.teacher}
    stages = plan(**arguments)  # a wrong request is answered here, before any server starts
    if options.dry_run:
        return results.show_plan(stages, json=options.json)
    return results.show_trained(finetune(**arguments), json=options.json)
