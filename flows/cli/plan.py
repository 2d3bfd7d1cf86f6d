"""`vit plan`: what a training will need and cost, before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flows.cli import training
from flows.cli.session import Session
from vitcore import budget as budgets
from vitcore.budget import Budget
from vitcore.errors import RequestError

ABOUT = (
    "What a training will need and cost, before it runs: parameters, FLOPs, memory of a GPU, data rate, hours. Nothing "
    "of the hardware asked for need be here. Exit code 1: it fits on none of the sizes asked for, or in no budget."
)
EXAMPLES = (
    "vit plan vit_b16 --data data/birds --gpu h100 --nodes 1 2 4 8",
    'vit plan clip_b32 --data data/pairs --gpu a100-80 --compute.microbatch 256 --price 2.5 --budget "500 gpu-hours"',
    "vit plan deit_s16 --data data/birds --gpu l40s --gpus-per-node 4 --teacher torchvision:resnet50",
    "vit plan vit_tiny_cpu --data data/cifar10 --gpu cpu",
)


@dataclass(frozen=True, kw_only=True)
class Options(training.Asked):
    """The arguments that are not fields of a recipe."""

    gpu: str = "auto"
    """What it would run on: v100, a100-40, a100-80, a10, l4, l40s, rtx4090, h100, h200 or b200; cpu for this machine;
    auto for this machine's GPU, if it has one."""
    nodes: tuple[int, ...] = (1,)
    """Sizes of a cluster, in nodes: a row each."""
    gpus_per_node: int | None = None
    """GPUs of a node; default: 8. On a CPU: workers of a machine; default: as many as a training takes."""
    network: float = 50.0
    """What a node reaches the others by, in GB/s each way; 50 is one port of 400 Gb/s."""
    mfu: float | None = None
    """Share of the hardware's peak that a step computes at, such as 0.4; default: assumed, or measured."""
    probe: Literal["auto", "on", "off"] = "auto"
    """Whether to take 20 steps of the training, where the hardware is here, instead of assuming how fast they are."""
    price: float | None = None
    """Of a GPU for an hour, in whatever currency; without, no cost is shown."""
    budget: str | None = None
    """What it may take at most: "12 hours", or "200 gpu-hours"."""
    model: str | None = None
    """The model to start from, as `vit finetune` takes it: for recipes that do not say themselves how large it is."""
    teacher: str | None = None
    """The model to follow, as `vit distill` takes it: its forward pass is counted, which is else taken to be stored."""


def run(argv: list[str], session: Session) -> int:
    """Run the verb; returns the exit code: 1 where nothing asked for fits."""
    request = training.read("plan", Options, argv, about=ABOUT, examples=EXAMPLES)
    if request is None:
        return 0
    options = request.options
    budget = _checked(options)
    session.start()
    from flows.cli.planned import show
    from flows.plan import plan

    planned = plan(
        request.recipe,
        options.data,
        overrides=request.overrides,
        compute=request.compute,
        model=options.model,
        teacher=options.teacher,
        gpu=options.gpu,
        nodes=options.nodes,
        per_node=options.gpus_per_node,
        mfu=options.mfu,
        network=options.network * 1e9,
        probe=options.probe,
    )
    return show(planned, price=options.price, budget=budget, json=options.json)


def _checked(options: Options) -> Budget | None:
    """The budget; and what is no number of anything is refused."""
    if not options.nodes or min(options.nodes) < 1:
        raise RequestError("--nodes takes numbers from 1")
    for name, value in {"--network": options.network, "--mfu": options.mfu, "--price": options.price}.items():
        if value is not None and not value > 0:
            raise RequestError(f"{name} takes a number above 0, not {value:g}")
    if options.mfu is not None and options.mfu > 1:
        raise RequestError(f"--mfu is a share of the peak, from 0 to 1, not {options.mfu:g}")
    try:
        return None if options.budget is None else budgets.parse(options.budget)
    except ValueError as error:
        raise RequestError(f"--budget: {error}") from None
