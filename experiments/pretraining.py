"""Claim (a): pre-training on much data, then fine-tuning, beats training from scratch on little (2010.11929).

Source: 30,000 photographs of six classes. Target: 400 of the four others.
"""

from __future__ import annotations

from experiments.contestants import recipe, tuned
from experiments.corpora import Corpora
from experiments.report import SCORE, Results, Section, bars, claim, percent, points, scores, table, verdict
from experiments.runs import Run
from experiments.spread import gain, mean

SOURCE = ("airplane", "automobile", "bird", "cat", "deer", "dog")
TARGET = ("frog", "horse", "ship", "truck")
PER_CLASS = 100
SEEDS = range(3)
SOURCE_STEPS, TARGET_STEPS = 1800, 200
WAYS = {
    "tuned": "pre-trained on the six, then fine-tuned",
    "scratch": "from scratch, as many steps as the fine-tuning",
    "long": "from scratch, as many steps as both together",
}


def runs(corpora: Corpora) -> list[Run]:
    """All trainings of the claim."""
    source = corpora.photographs("source", SOURCE)
    target = corpora.photographs("target", TARGET, PER_CLASS)
    found = []
    for seed in SEEDS:
        found += [
            Run(f"source-{seed}", recipe("source", SOURCE_STEPS, seed), source),
            Run(f"tuned-{seed}", tuned("tuned", TARGET_STEPS, seed, lr=3e-4), target, init=f"source-{seed}"),
            Run(f"scratch-{seed}", recipe("scratch", TARGET_STEPS, seed), target),
            Run(f"long-{seed}", recipe("long", SOURCE_STEPS + TARGET_STEPS, seed), target),
        ]
    return found


def section(corpora: Corpora, results: Results) -> Section:
    """What was found."""
    found = {way: scores(results, way, SEEDS) for way in WAYS}
    against = {way: gain(found["tuned"], found[way]) for way in ("scratch", "long")}
    rows = [
        (WAYS[way], percent(mean(values)), points(against[way]) if way in against else "")
        for way, values in found.items()
    ]
    said = verdict(
        against["long"],
        "The claim holds here: what was learnt from other classes is worth more than as many steps on the target.",
        "The claim does not hold here: as many steps on the target are worth more.",
        "Against as many steps on the target nothing is shown.",
    )
    table_ = table(("trained", "top-1, 4,000 test photographs", "fine-tuned is better by (points)"), rows)
    figure = bars(
        {WAYS[way]: mean(values) for way, values in found.items()},
        "Pre-training, 400 photographs to learn from",
        SCORE,
        f"mean of {len(SEEDS)} seeds, 95 % intervals",
    )
    return Section("(a) Pre-training, then fine-tuning", claim(__doc__, table_, said), {"pretraining": figure})
