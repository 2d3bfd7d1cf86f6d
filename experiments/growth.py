"""Claim (c): with few photographs a CNN beats a ViT, with many the ViT catches up (2010.11929, section 4.3).

Both have about as many weights and see as many views, of 500 to 50,000 photographs.
"""

from __future__ import annotations

from experiments.contestants import CNN, recipe
from experiments.corpora import Corpora
from experiments.report import Results, Section, claim, curves, percent, points, scores, table, verdict
from experiments.runs import Run
from experiments.spread import gain, mean

PER_CLASS = (50, 500, 5000)
SEEDS = range(3)
STEPS = 900


def runs(corpora: Corpora) -> list[Run]:
    """All trainings of the claim."""
    found = []
    for count in PER_CLASS:
        data = corpora.photographs(f"{10 * count}", per_class=count)
        for seed in SEEDS:
            found.append(Run(f"vit-{count}-{seed}", recipe("vit", STEPS, seed), data))
            found.append(Run(f"cnn-{count}-{seed}", recipe("cnn", STEPS, seed, model=CNN), data))
    return found


def section(corpora: Corpora, results: Results) -> Section:
    """What was found."""
    sizes = [10 * count for count in PER_CLASS]
    lines = {
        name: [scores(results, f"{kind}-{count}", SEEDS) for count in PER_CLASS]
        for kind, name in (("cnn", "CNN"), ("vit", "ViT"))
    }
    leads = [gain(cnn, vit) for cnn, vit in zip(lines["CNN"], lines["ViT"], strict=True)]
    rows = [
        (f"{size:,}", percent(mean(cnn)), percent(mean(vit)), points(lead))
        for size, cnn, vit, lead in zip(sizes, lines["CNN"], lines["ViT"], leads, strict=True)
    ]
    trend = gain(
        [cnn - vit for cnn, vit in zip(lines["CNN"][0], lines["ViT"][0], strict=True)],
        [cnn - vit for cnn, vit in zip(lines["CNN"][-1], lines["ViT"][-1], strict=True)],
    )
    said = (
        verdict(
            trend,
            "The CNN's lead shrinks as the data grow, as the paper says",
            "The CNN's lead grows with the data: at this size and length of training the paper's claim is not seen",
            "Whether the CNN's lead shrinks as the data grow is not shown",
        )
        + f" (first lead less the last: {points(trend)} points)."
    )
    table_ = table(("photographs", "CNN", "ViT", "CNN is better by (points)"), rows)
    figure = curves(sizes, {name: [mean(values) for values in line] for name, line in lines.items()})
    return Section("(c) CNN and ViT as the data grow", claim(__doc__, table_, said), {"growth": figure})
