"""`vit pretrain`: train a recipe from scratch."""

from __future__ import annotations

from flows.cli import results, training
from flows.cli.session import Session

ABOUT = "Train a recipe from scratch on a dataset, from labels, from captions or from neither, and register the model."
EXAMPLES = (
    'vit pretrain vit_s16 --data data/birds --train.duration "90 epochs"',
    "vit pretrain vit_tiny_cpu --data data/cifar10 --optim.lr 5e-4 --compute.workers 2",
    "vit pretrain clip_b32 --data data/pairs --model.image.width 384 --model.image.heads 6",
    "vit pretrain dino_tiny_cpu --data data/cifar10 --dry-run",
)


def run(argv: list[str], session: Session) -> int:
    """Run the verb; returns the exit code."""
    request = training.read("pretrain", training.Options, argv, about=ABOUT, examples=EXAMPLES)
    if request is None:
        return 0
    session.start()
    from flows.pretrain import pretrain
    from flows.request import plan

    options = request.options
    stages = plan(**request.arguments())  # a wrong request is answered here, before any server starts
    if options.dry_run:
        return results.show_plan(stages, json=options.json)
    return results.show_trained(pretrain(**request.arguments()), json=options.json)
