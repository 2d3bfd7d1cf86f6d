"""The promotion gate: may a candidate become the champion? A pure function of what both said about the same samples.

Gate on the validation split. A test split that decides who is promoted is no longer a test.
"""

from __future__ import annotations

from dataclasses import dataclass

from vitcore.errors import RequestError
from vitcore.evals.metrics import MetricName, chance
from vitcore.evals.outcomes import Outcomes, pair
from vitcore.evals.statistics import RESAMPLES, Difference, Estimate, estimate, paired_difference

_NAMES: dict[MetricName, str] = {"top1": "top-1 accuracy", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether the candidate passed, and why, in sentences that stand on their own."""

    passed: bool
    reasons: tuple[str, ...]
    """One sentence a rule, whether it was met or not"""
    candidate: Estimate
    champion: Estimate | None
    difference: Difference | None
    """Candidate minus champion; none without a champion"""


def decide(
    candidate: Outcomes,
    champion: Outcomes | None,
    *,
    metric: MetricName = "balanced_accuracy",
    margin: float = 0.01,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Decision:
    """Apply the rules; the candidate passes when every rule that applies is met.

    1. Always: the lower bound of its 95 % interval lies above chance (`metrics.chance`: what a model scores that
       never looks at the photograph). A first champion needs nothing more.
    2. Against a champion, non-inferiority: the lower bound of the paired 95 % interval of the difference lies at or
       above −`margin`. Requiring a proven improvement instead (lower bound above 0) would refuse nearly every equal
       or slightly better retraining on a validation split of a few hundred samples; requiring only a better point
       value would promote by luck.
    3. Against a champion, no step back: the difference itself is not below 0. Non-inferiority alone lets a series
       of promotions each lose a little less than the margin; with this rule the champion's score on a validation
       split never sinks.

    So a candidate that decides every sample like the champion passes (a refreshed model may replace its equal), a
    worse one never does, and a better one does once the samples suffice to exclude a loss beyond the margin. The
    price: with few samples an insignificantly better candidate is refused until more are at hand or the margin is
    widened deliberately. The interval carries no allowance for asking repeatedly with the same split.

    Args:
        candidate: its outcomes on the gate's split.
        champion: the reigning model's outcomes on the same samples, or none.
        metric: what is compared.
        margin: the loss, in units of the metric, that would still be tolerable; 0.01 is one point of accuracy.
        resamples: bootstrap resamples.
        seed: of the bootstrap, so that the same outcomes give the same decision.

    Raises:
        RequestError: a negative margin, or outcomes that do not cover the same samples.
        WorkError: the metric is undefined on these samples (AUROC with one class).
    """
    if not margin >= 0:
        raise RequestError(f"the gate's margin is {margin}; give the tolerable loss as a number of at least 0")
    own = estimate(metric, candidate.labels, candidate.logits, resamples=resamples, seed=seed)
    floor = chance(metric, candidate.labels)
    met = own.low > floor
    reasons = [
        f"Its {_NAMES[metric]} of {own} on {own.n} samples {'lies above' if met else 'is not clearly above'} "
        f"chance ({floor:.3f})."
    ]
    if champion is None:
        reasons.append("There is no champion to compare with.")
        return Decision(met, tuple(reasons), own, None, None)
    ours, theirs = pair(candidate, champion)
    reigning = estimate(metric, theirs.labels, theirs.logits, resamples=resamples, seed=seed)
    gap = paired_difference(metric, ours.labels, ours.logits, theirs.logits, resamples=resamples, seed=seed)
    safe, level = gap.low >= -margin, gap.value >= 0
    reasons.append(
        f"Against the champion's {reigning} it differs by {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]: a loss "
        f"of more than the margin of {margin:g} is {'excluded' if safe else 'not excluded'}."
    )
    reasons.append(f"It scores {'no lower' if level else 'lower'} than the champion on these samples.")
    return Decision(met and safe and level, tuple(reasons), own, reigning, gap)
