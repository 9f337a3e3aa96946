"""Fitting the rules of early exits on the calibration split, never on test.

Each calibration takes the cheapest of its candidates at which the accuracy is at most `max_drop`
below that of the last exit alone.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustdyn.losses import described
from robustdyn.primitives.exit_rules import confidence_logit, log_entropy, patience
from robustdyn.recipe import Calibrate
from robustdyn.trace import trace

RATIOS = [k / 20 for k in range(1, 40)]  # .05 to 1.95, as MSDNet's
LEAST_SHARE = 0.01  # of the calibration samples, that every exit must have
MOST_SURE = 12.0  # log-odds of a threshold: a probability that float32 tells from 1


class _Outcome(NamedTuple):
    """What the exits of a model say of the calibration split, and what each costs."""

    logits: Tensor  # (exits, N, K)
    right: Tensor  # (exits, N) bool
    macs: Tensor  # (exits,), of a sample that stops there


def _outcome(model: nn.Module, inputs: list[Tensor], labels: list[Tensor]) -> _Outcome:
    parts = []
    for x in inputs:
        with trace() as passed:
            model(x)
        parts.append(torch.stack([exit.logits for exit in passed.exits]))
    logits = torch.cat(parts, 1)
    macs = torch.zeros(len(logits), dtype=torch.float64)
    untaken = len(logits) - 1 - len(passed.decisions)  # the first exits, which cannot be taken
    for term, shares in passed.terms():  # behind n gates: not run by samples that stop before
        macs[len(shares) and untaken + len(shares) :] += term
    return _Outcome(logits, logits.argmax(2) == torch.cat(labels), macs)


def _accuracy(seen: _Outcome, stop: Tensor) -> float:
    return seen.right[stop, torch.arange(len(stop))].double().mean().item()


@described
def fit_exit_shares(*, measure: str, max_drop: float) -> Calibrate:
    """Return a calibration of one threshold per exit, `model.thresholds` (exits - 1,).

    MSDNet's scheme (Huang et al. 2018, arXiv:1703.09844): the share of samples that stop at exit k
    is proportional to q^k; threshold k is the quantile of how sure exit k is of the samples still
    inside. q is one of .05, .10 ... 1.95 at which every exit has at least 1 % of the samples: an
    exit where nobody goes on, or all do, would be no decision.

    Args:
        measure: "confidence" for thresholds on the largest probability, "entropy" for thresholds
            on the entropy.
    """
    sureness = {"confidence": confidence_logit, "entropy": lambda z: -log_entropy(z)}[measure]

    def calibrate(model: nn.Module, inputs: list[Tensor], labels: list[Tensor]) -> None:
        seen = _outcome(model, inputs, labels)
        sure = torch.stack([sureness(part) for part in seen.logits])  # (exits, N)
        last = torch.full((sure.shape[1],), len(sure) - 1)
        enough = _accuracy(seen, last) - max_drop
        best = (seen.macs[-1].item(), torch.full((len(sure) - 1,), MOST_SURE))
        for ratio in RATIOS:
            limits, stop = _limits(sure, ratio)
            cost = seen.macs[stop].mean().item()
            used = stop.bincount(minlength=len(sure)).min() >= LEAST_SHARE * len(stop)
            if used and _accuracy(seen, stop) >= enough and cost < best[0]:
                best = cost, limits
        limits = best[1]
        fitted = limits.sigmoid() if measure == "confidence" else (-limits).exp()
        model.thresholds.copy_(fitted)  # type: ignore[operator]

    return calibrate


def _limits(sure: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Return how sure each exit but the last must be (exits - 1,), and where samples stop (N,)."""
    shares = torch.tensor([ratio**k for k in range(len(sure))])
    counts = (shares / shares.sum() * sure.shape[1]).round().long()
    stop = torch.full((sure.shape[1],), len(sure) - 1)
    inside = torch.ones(sure.shape[1], dtype=torch.bool)
    limits: list[float] = []
    for k, count in enumerate(counts[:-1].tolist()):
        ranked = sure[k][inside].sort(descending=True).values
        count = min(count, len(ranked))
        limits.append(min(ranked[count - 1].item(), MOST_SURE) if count else MOST_SURE)
        leaves = inside & (sure[k] >= limits[-1])
        stop[leaves] = k
        inside &= ~leaves
    return torch.tensor(limits), stop


@described
def fit_patience(*, max_drop: float) -> Calibrate:
    """Return a calibration of `model.times`: how often in a row the exits must agree to stop."""

    def calibrate(model: nn.Module, inputs: list[Tensor], labels: list[Tensor]) -> None:
        seen = _outcome(model, inputs, labels)
        exits = len(seen.logits)
        enough = _accuracy(seen, torch.full((seen.right.shape[1],), exits - 1)) - max_drop
        for times in range(1, exits - 1):
            rule = patience(times)
            on = [rule(list(seen.logits[: k + 1])) > 0 for k in range(times, exits - 1)]
            onward = torch.stack(on).int().cumprod(0).sum(0)  # how many exits are passed by
            if _accuracy(seen, times + onward) >= enough:
                break
        model.times.fill_(times)  # type: ignore[operator]

    return calibrate
