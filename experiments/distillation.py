"""Claim (b): a ViT learns more from few photographs when a convolutional teacher tells it what it sees (2012.12877).

8,000 photographs. The teacher is an EfficientNet-Lite0 with its ImageNet weights, fine-tuned on the same 8,000: it
knows more than they hold, as a teacher in practice does. The students start from scratch and see the same batches.
"""

from __future__ import annotations

from experiments.contestants import distilled, recipe, tuned
from experiments.corpora import Corpora
from experiments.report import SCORE, Results, Section, bars, claim, percent, points, scores, table, verdict
from experiments.runs import Run
from experiments.spread import gain, mean

PER_CLASS = 800
SEEDS = range(3)
TEACHER_STEPS, STEPS = 300, 800
WAYS = {
    "plain": "the same ViT, without a teacher",
    "hard": "DeiT, hard distillation",
    "soft": "DeiT, soft distillation",
}


def runs(corpora: Corpora) -> list[Run]:
    """All trainings of the claim."""
    data = corpora.photographs("sixth", per_class=PER_CLASS)
    teacher = tuned("teacher", TEACHER_STEPS, 0, lr=1e-3)
    found = [Run("teacher", teacher, data, init="pypi:efficientnet_lite0")]
    for seed in SEEDS:
        found.append(Run(f"plain-{seed}", recipe("plain", STEPS, seed), data))
        found += [
            Run(f"{mode}-{seed}", distilled(mode, STEPS, seed, mode), data, teacher="teacher")
            for mode in ("hard", "soft")
        ]
    return found


def section(corpora: Corpora, results: Results) -> Section:
    """What was found."""
    found = {way: scores(results, way, SEEDS) for way in WAYS}
    teacher = results["teacher"].metrics["top1"]
    against = {way: gain(found[way], found["plain"]) for way in ("hard", "soft")}
    rows = [
        (WAYS[way], percent(mean(values)), points(against[way]) if way in against else "")
        for way, values in found.items()
    ]
    rows.append(("the teacher", f"{teacher:.1%}".replace("%", " %"), ""))
    said = " ".join(
        verdict(
            against[way],
            f"{way.capitalize()} distillation helps.",
            f"{way.capitalize()} distillation hurts.",
            f"Of {way} distillation nothing is shown.",
        )
        for way in against
    )
    table_ = table(("student", "top-1, 10,000 test photographs", "gain over no teacher (points)"), rows)
    figure = bars(
        {WAYS[way]: mean(values) for way, values in found.items()},
        "Distillation, 8,000 photographs to learn from",
        SCORE,
        f"mean of {len(SEEDS)} seeds, 95 % intervals",
    )
    return Section("(b) Distillation", claim(__doc__, table_, said), {"distillation": figure})
