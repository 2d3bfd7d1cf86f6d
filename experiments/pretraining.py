"""Claim (a): pre-training on much data, then fine-tuning, beats training from scratch on little (2010.11929).

Source: 30,000 photographs of six classes. Target: 100 or 400 of the four others.
"""

from __future__ import annotations

from experiments.contestants import recipe, tuned
from experiments.corpora import Corpora
from experiments.report import SCORE, Results, Section, bars, claim, percent, points, scores, table, verdict
from experiments.runs import Run
from experiments.spread import gain, mean
from vitcore.evals.statistics import Estimate

SOURCE = ("airplane", "automobile", "bird", "cat", "deer", "dog")
TARGET = ("frog", "horse", "ship", "truck")
PER_CLASS = (25, 100)
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
    targets = {count: corpora.photographs(f"target-{count}", TARGET, count) for count in PER_CLASS}
    found = []
    for seed in SEEDS:
        found.append(Run(f"source-{seed}", recipe("source", SOURCE_STEPS, seed), source))
        for count, target in targets.items():
            fine = tuned("tuned", TARGET_STEPS, seed, lr=3e-4)
            found += [
                Run(f"tuned-{count}-{seed}", fine, target, init=f"source-{seed}"),
                Run(f"scratch-{count}-{seed}", recipe("scratch", TARGET_STEPS, seed), target),
                Run(f"long-{count}-{seed}", recipe("long", SOURCE_STEPS + TARGET_STEPS, seed), target),
            ]
    return found


def section(corpora: Corpora, results: Results) -> Section:
    """What was found."""
    rows, said = [], []
    estimates: dict[str, Estimate] = {}
    for count in PER_CLASS:
        size = len(TARGET) * count
        found = {way: scores(results, f"{way}-{count}", SEEDS) for way in WAYS}
        against = {way: gain(found["tuned"], found[way]) for way in ("scratch", "long")}
        rows += [
            (str(size), WAYS[way], percent(mean(values)), points(against[way]) if way in against else "")
            for way, values in found.items()
        ]
        estimates |= {f"{size}: {WAYS[way]}": mean(values) for way, values in found.items()}
        holds = verdict(
            against["long"],
            "what was learnt from other classes is worth more than as many steps on the target.",
            "as many steps on the target are worth more than what was learnt from other classes.",
            "neither that nor as many steps on the target is shown to be worth more.",
        )
        said.append(f"With {size} photographs {holds}")
    head = ("photographs", "trained", "top-1, 4,000 test photographs", "fine-tuned is better by (points)")
    figure = bars(
        estimates,
        "Pre-training, then fine-tuning",
        SCORE,
        f"on 100 or 400 photographs; {len(SEEDS)} seeds, 95 % intervals",
    )
    text = claim(__doc__, table(head, rows), " ".join(said))
    return Section("(a) Pre-training, then fine-tuning", text, {"pretraining": figure})
