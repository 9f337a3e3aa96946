"""Route to experts: run some of E equally large experts for each sample, and mix what they say."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from robustdyn.decision import Decision, Share
from robustdyn.execution import is_sparse
from robustdyn.gates import keep_from
from robustdyn.kernels import gather_rows, scatter_rows
from robustdyn.primitives.layout import zeros_for
from robustdyn.trace import mark_sparse, record_decision, region

SURELY = 8.0  # the margin of the likeliest expert under top-p, which always runs
_LEAST = 1e-6  # the margin of a chosen expert that ties with one that is not


class Routing(NamedTuple):
    """Which experts run: one decision (B, E), and the share of all experts' work that this is."""

    decision: Decision
    share: Share


def route_top_k(name: str, logits: Tensor, k: int) -> Routing:
    """Return the routing to the k experts with the largest logits (B, E), k < E.

    The margin is the logit minus the middle between the last chosen and the first other one, so
    that margins differ as logits do. Exactly k run whatever the input, so the share is k/E, hard
    and soft, and full inference is k experts too. Noisy top-k without its noise: Shazeer et al.
    2017, arXiv:1701.06538.
    """
    best = logits.topk(k + 1, dim=1)
    border = best.values[:, -2:].mean(1, keepdim=True)
    chosen = torch.zeros_like(logits).scatter(1, best.indices[:, :k], 1.0) > 0.5
    margin = logits - border
    margin = torch.where(chosen, margin.clamp(min=_LEAST), margin.clamp(max=0.0))
    decision = _at_most(name, margin, k)
    part = k / logits.shape[1]
    share = Share(lambda: _part(decision), lambda: torch.full_like(logits[:, 0], part), part)
    return Routing(decision, share)


def route_top_p(name: str, logits: Tensor, p: float) -> Routing:
    """Return the routing to the fewest experts whose probabilities sum to p, the likeliest first.

    Probabilities are softmax(logits), logits (B, E). An expert runs if the likelier ones together
    do not reach p: its margin is logit(p) minus the log-odds of their sum, at most SURELY above
    logit(p), which is that of the likeliest expert. More than ceil(p E) experts never run; that is
    what full inference runs, and what the soft share counts. Huang et al. 2024, arXiv:2403.07652.
    """
    experts = logits.shape[1]
    rank = _rank(logits)
    likelier = rank[:, None, :] < rank[:, :, None]  # (B, e, f): f comes before e
    pairs = logits[:, None, :].expand(-1, experts, -1)
    before = pairs.masked_fill(~likelier, float("-inf")).logsumexp(2)
    rest = pairs.masked_fill(likelier, float("-inf")).logsumexp(2)
    first = rank == 0
    odds = torch.where(first, -SURELY, before.masked_fill(first, 0.0) - rest)
    margin = torch.logit(torch.tensor(p, dtype=logits.dtype)).item() - odds.clamp(min=-SURELY)
    most = _reachable(p, experts)
    decision = _at_most(name, margin, most)

    def soft() -> Tensor:
        return torch.sigmoid(margin).masked_fill(rank >= most, 0.0).mean(1)

    share = Share(lambda: _part(decision), soft, most / experts, decision=decision)
    return Routing(decision, share)


def _rank(values: Tensor) -> Tensor:
    """The place of each expert, 0 for the largest value, (B, E)."""
    return values.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def _reachable(p: float, experts: int) -> int:
    """The most experts that top-p can run: n, if n - 1 equally likely ones do not reach p."""
    return sum(before < p * experts * (1 - 1e-9) for before in range(experts))


def _at_most(name: str, margin: Tensor, most: int) -> Decision:
    """Decide on experts; where an estimator keeps more than `most`, only the best of them run."""
    keep = keep_from(margin)
    best = _rank(margin) < most
    over = (keep > 0.5).sum(1, keepdim=True) > most
    capped = torch.where(over, keep * best, keep)
    decision = Decision(name, "expert", margin, keep + (capped - keep).detach())
    record_decision(decision)
    return decision


def _part(decision: Decision) -> Tensor:
    return decision.kept.double().mean(1)


def kept_softmax(logits: Tensor, keep: Tensor) -> Tensor:
    """Return the softmax of logits (B, E) over the kept experts; 0 for the others."""
    weights = torch.softmax(logits, 1) * keep
    return weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def mix_experts(
    routing: Routing, weights: Tensor, experts: Sequence[Callable[[Tensor], Tensor]], x: Tensor
) -> Tensor:
    """Return sum over the chosen experts of weights[:, e] * experts[e](x), (B, ...).

    Args:
        routing: to the experts.
        weights: (B, E), zero for experts that are not chosen; see kept_softmax.
        experts: E functions of equal cost, sample by sample, from (n, ...) to (n, ...).
        x: (B, ...).
    """
    if is_sparse():
        return _sparse(routing, weights, experts, x)
    with region(routing.share):
        parts = [expert(x) for expert in experts]
    mixed = torch.zeros_like(parts[0])
    for e, y in enumerate(parts):
        mixed = mixed + _per_sample(weights[:, e], y) * y
    return mixed


def _sparse(
    routing: Routing, weights: Tensor, experts: Sequence[Callable[[Tensor], Tensor]], x: Tensor
) -> Tensor:
    mark_sparse()
    mixed = None
    for e, expert in enumerate(experts):
        rows = routing.decision.kept[:, e].nonzero().flatten()
        if not len(rows):
            continue
        y = expert(gather_rows(x, rows))
        if mixed is None:
            mixed = zeros_for(y, len(x))
        y = gather_rows(mixed, rows) + _per_sample(gather_rows(weights[:, e], rows), y) * y
        mixed = scatter_rows(y, rows, mixed)
    if mixed is None:  # an estimator may keep none
        y = experts[0](x[:0])
        mixed = zeros_for(y, len(x))
    return mixed


def _per_sample(weight: Tensor, like: Tensor) -> Tensor:
    return weight.reshape(-1, *[1] * (like.dim() - 1))
