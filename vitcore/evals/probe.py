"""What frozen features are worth: the vote of the nearest training photographs, and a linear classifier of them.

Legend: N photographs of the bank, Q queries, K classes, D width of the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vitcore.errors import RequestError
from vitcore.evals.answers import Answers
from vitcore.evals.outcomes import Outcomes
from vitcore.measures.neighbours import neighbour_votes

_FLOOR = 1e-12  # share of the votes that stands for none: logits must be finite
_ROWS = 65_536  # of the bank in one pass, which bounds memory at a thousand classes
_HELD_OUT = 10  # one in so many photographs of the bank chooses the decay
_ITERATIONS = 1000  # most of L-BFGS, as in 2103.00020, appendix A.3
_COARSE = (2.0, 0.0, -2.0, -4.0, -6.0)  # decades of decay
_HALVINGS = 2  # of the two decades around the best of them
_SEED = 0


class LinearProbe(NamedTuple):
    """A linear classifier of features."""

    weights_KD: Tensor
    bias_K: Tensor
    decay: float
    """λ it was learned with."""

    def logits(self, features_ND: Tensor) -> Tensor:
        """Logits (N, K)."""
        return F.linear(features_ND, self.weights_KD, self.bias_K)


def neighbour_outcomes(bank: Answers, queries: Answers, classes: Sequence[str], device: torch.device) -> Outcomes:
    """Weighted k-NN with k = 20 and a temperature of 0.07 (Wu et al. 2018, 1805.01978, section 3.4, as in DINO).

    Logits are the logarithms of the classes' shares of the vote.

    Raises:
        RequestError: the bank has no label.
    """
    known = _labelled(bank)
    votes_QK = neighbour_votes(
        torch.from_numpy(queries.values).to(device),
        torch.from_numpy(known.values).to(device),
        torch.from_numpy(known.labels).to(device),
        len(classes),
    ).cpu()
    shares_QK = votes_QK.double() / votes_QK.double().sum(dim=1, keepdim=True)
    logits = shares_QK.clamp_min(_FLOOR).log().float().numpy()
    return Outcomes(queries.keys, queries.labels, logits, tuple(classes), queries.skipped)


def linear_outcomes(bank: Answers, queries: Answers, classes: Sequence[str], device: torch.device) -> Outcomes:
    """Multinomial logistic regression on frozen features (2103.00020, appendix A.3); see `linear_probe`.

    Raises:
        RequestError: the bank has no label.
    """
    known = _labelled(bank)
    probe = linear_probe(
        torch.from_numpy(known.values).to(device), torch.from_numpy(known.labels).to(device), len(classes)
    )
    logits = probe.logits(torch.from_numpy(queries.values).to(device)).cpu().numpy()
    return Outcomes(queries.keys, queries.labels, logits, tuple(classes), queries.skipped)


def linear_probe(features_ND: Tensor, labels_N: Tensor, num_classes: int) -> LinearProbe:
    """Logistic regression with the decay that tells a held-out tenth of the photographs best.

    Five decays two decades apart are tried, then the space around the best is halved twice, so that the decay is known
    to half a decade; a tie goes to the lower cross-entropy. With it the classifier is learned on all photographs.

    Args:
        features_ND: float32.
        labels_N: int64, each in 0 … K−1.
        num_classes: K.
    """
    order_N = torch.randperm(len(labels_N), generator=torch.Generator().manual_seed(_SEED)).to(labels_N.device)
    held, kept = order_N[::_HELD_OUT], order_N[torch.arange(len(order_N), device=order_N.device) % _HELD_OUT > 0]
    if not len(kept):  # a single photograph: nothing to choose by
        return logistic_regression(features_ND, labels_N, num_classes, decay=1.0)
    found: dict[float, tuple[float, float]] = {}
    start: LinearProbe | None = None

    def attempt(decade: float) -> None:
        nonlocal start
        if decade in found:
            return
        start = logistic_regression(features_ND[kept], labels_N[kept], num_classes, decay=10**decade, start=start)
        logits_QK, wanted_Q = start.logits(features_ND[held]), labels_N[held]
        right = (logits_QK.argmax(1) == wanted_Q).float().mean().item()
        found[decade] = right, -F.cross_entropy(logits_QK, wanted_Q).item()

    for decade in _COARSE:
        attempt(decade)
    for halving in range(1, _HALVINGS + 1):
        best = max(found, key=lambda decade: found[decade])
        for step in (1, -1):
            attempt(best + step * 2.0 / 2**halving)
    best = max(found, key=lambda decade: found[decade])
    return logistic_regression(features_ND, labels_N, num_classes, decay=10**best, start=start)


def logistic_regression(
    features_ND: Tensor, labels_N: Tensor, num_classes: int, *, decay: float, start: LinearProbe | None = None
) -> LinearProbe:
    """Minimises mean cross-entropy + λ/2 · ‖W‖² by L-BFGS; the bias is free.

    Features are centred and divided by one number, the root of their mean square, first: λ then means the same for
    features of any size. What is returned takes features as they are.

    Args:
        features_ND: float32.
        labels_N: int64.
        num_classes: K.
        decay: λ.
        start: where to begin: the solution for another λ. The problem is convex; this only saves time.
    """
    mean_D = features_ND.mean(dim=0)
    size = (features_ND - mean_D).square().mean().sqrt().clamp_min(1e-12)
    weights_KD = features_ND.new_zeros(num_classes, features_ND.shape[1])
    bias_K = features_ND.new_zeros(num_classes)
    if start is not None:
        weights_KD += start.weights_KD * size
        bias_K += start.bias_K + start.weights_KD @ mean_D
    parameters = [weights_KD.requires_grad_(), bias_K.requires_grad_()]
    search = torch.optim.LBFGS(
        parameters, max_iter=_ITERATIONS, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        total = decay / 2 * weights_KD.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        loss = total.detach()
        for at in range(0, len(labels_N), _ROWS):
            scaled_ND = (features_ND[at : at + _ROWS] - mean_D) / size
            logits_NK = F.linear(scaled_ND, weights_KD, bias_K)
            part = F.cross_entropy(logits_NK, labels_N[at : at + _ROWS], reduction="sum") / len(labels_N)
            part.backward()  # type: ignore[no-untyped-call]
            loss = loss + part.detach()
        return loss

    search.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        plain_KD = weights_KD / size
        return LinearProbe(plain_KD, bias_K - plain_KD @ mean_D, decay)


def _labelled(bank: Answers) -> Answers:
    known = bank.some(bank.labels >= 0)
    if not len(known.labels):
        raise RequestError("none of the known photographs has a label; name another split with --bank")
    return known
